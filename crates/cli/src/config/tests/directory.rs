//! `redis.directory`: several Redis servers.

use super::*;

struct Directory(tempfile::TempDir);

impl Directory {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("directory.toml"), text).unwrap();
        Self(folder)
    }

    fn path(&self) -> String {
        self.0.path().join("directory.toml").display().to_string()
    }

    /// Loads for an entry, over this configuration.
    fn load(&self, file: &str, name: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let path = self.path();
        let named = [("BALANCE_SYNC__REDIS__DIRECTORY", path.as_str()), ("BALANCE_SYNC__REDIS__NAME", name)];
        complete(file, &[&named[..], environment].concat())
    }

    fn problems(&self, name: &str) -> Vec<String> {
        let error = self.load("", name, &[]).unwrap_err();
        assert!(!error.to_string().contains(SECRET), "{error}");
        error.problems.iter().map(ToString::to_string).collect()
    }
}

const TWO: &str = "[redis.a]\nurl = \"redis://one:7000\"\ntenants = [\"acme\", \"eu-*\"]\n\
                   [redis.b]\nurl = \"redis://two\"\ndb = 3\nusername = \"sync\"\ndefault = true\n";

#[test]
fn an_entry_says_where_its_server_is_and_takes_the_rest_from_the_section() {
    let directory = Directory::new(TWO);
    let file = "[redis]\nurl = \"redis://other\"\ndb = 9\nresponse_timeout = \"7s\"";
    let config = directory.load(file, "b", &[("REDIS_PASSWORD", SECRET), ("REDIS_HOST", "x:1,y:2")]).unwrap();
    let link = &config.redis.link;
    assert_eq!(link.url.expose_secret(), "redis://sync@two");
    assert_eq!((link.db, password(link), link.response_timeout), (Some(3), SECRET, Duration::from_secs(7)));
    assert!(link.cluster_nodes.is_empty(), "the ledger's hosts are those of one Redis");
    let found = config.redis.directory.as_ref().unwrap();
    assert_eq!((found.own.as_str(), found.entries.len()), ("b", 2));
    assert_eq!(found.entries[0].link.url.expose_secret(), "redis://one:7000");
    assert_eq!(found.entries[0].link.db, Some(0), "an address of the section is of no entry");
    assert_eq!(found.routes.route("eu-7"), Ok("a"));
    assert_eq!(found.routes.route("globex"), Ok("b"));
    assert!(printed(&config, "redis.db").contains(&format!("entry b of {}", directory.path())));
    assert!(!print(&config).contains(SECRET));

    let names = config::redis_names(None, [("BALANCE_SYNC__REDIS__DIRECTORY", directory.path())]).unwrap();
    assert_eq!(names, ["a", "b"]);
    assert!(config::redis_names(None, [("PATH", "/bin")]).unwrap().is_empty());
}

#[test]
fn the_database_may_stand_in_the_url_of_an_entry() {
    let directory = Directory::new("[redis.a]\nurl = \"redis://one/4\"\ndefault = true\n");
    assert_eq!(directory.load("[redis]\ndb = 9", "a", &[]).unwrap().redis.link.db, Some(4));
}

#[test]
fn an_entry_may_be_behind_sentinels() {
    let directory = Directory::new("[redis.s]\nmaster_name = \"m\"\nsentinels = [\"h:1\"]\ndefault = true\n");
    let config = directory.load("[redis]\nurl = \"redis://other\"", "s", &[]).unwrap();
    assert_eq!(config.redis.link.sentinel.unwrap().urls, ["redis://h:1"]);
}

#[test]
fn what_is_wrong_in_a_directory_is_refused_with_field_value_and_what_is_allowed() {
    let of = |text: &str, name: &str| Directory::new(text).problems(name).join("\n");
    for (text, name, expected) in [
        (TWO, "c", &["redis.name = \"c\"", "which entry of redis.directory", "allowed: a, b"][..]),
        (TWO, "", &["redis.name", "allowed: a, b"]),
        ("[redis.a]\nurl = \"redis://h\"\nurll = \"x\"\n", "a", &["redis.a.urll", "did you mean url?"]),
        (
            "[redis.a]\nurl = \"redis://h\"\ntenants = [\"a b\"]\n",
            "a",
            &["redis.a.tenants[0] = \"a b\"", "allowed: 1 to 256"],
        ),
        (
            "[redis.a]\nurl = \"redis://h\"\ntenants = \"a\"\n",
            "a",
            &["redis.a.tenants = \"a\"", "allowed: a list"],
        ),
        (
            "[redis.a]\nurl = \"redis://h\"\ndefault = 1\n",
            "a",
            &["redis.a.default = 1", "allowed: true or false"],
        ),
        ("[redis.a]\ntenants = []\n", "a", &["redis.a.url", "is missing"]),
        ("[other]\nx = 1\n", "a", &["other", "unknown key", "redis", "is missing"]),
        ("[redis.a]\nurl = \"redis://:hunter2-sesame@h\nx", "a", &["is not TOML: line 3"]),
        (
            "[redis.a]\nurl = \"redis://h\"\ntenants = [\"acme\"]\n[redis.b]\nurl = \"redis://i\"\ntenants = [\"acme\"]\n",
            "a",
            &["redis.b.tenants = \"acme\"", "stands in a as well", "allowed: in one entry"],
        ),
        (
            "[redis.a]\nurl = \"redis://h\"\n[redis.b]\nurl = \"redis://h:6379\"\ndefault = true\n",
            "a",
            &["redis.b.url (entry b of ", "is the Redis of a as well"],
        ),
        (
            "[redis.a]\nurl = \"h:1\"\ndefault = true\n",
            "a",
            &["redis.url = \"h:1\" (entry a of ", "allowed: redis://"],
        ),
        (
            "[redis.a]\nurl = \"redis://h\"\n[redis.b]\nurl = \"redis://i\"\ndb = 70000\n",
            "a",
            &["redis.db = 70000 (entry b of ", "allowed: 0 to 65535"],
        ),
    ] {
        let found = of(text, name);
        for part in expected {
            assert!(found.contains(part), "{part} in {found} of {text}");
        }
    }
    let gone = problem(
        "",
        &[("BALANCE_SYNC__REDIS__DIRECTORY", "/nonexistent/d"), ("BALANCE_SYNC__REDIS__NAME", "a")],
    );
    assert!(gone.contains("(Redis directory /nonexistent/d)") && gone.contains("can't be read"), "{gone}");
    let alone = problem("", &[("BALANCE_SYNC__REDIS__NAME", "a")]);
    assert!(alone.starts_with("redis.name (variable") && alone.contains("needs redis.directory"), "{alone}");
    let directory = Directory::new(TWO);
    let single =
        "[tenants]\nsource = \"single\"\n[tenants.single]\nhost = \"h\"\ndatabase = \"d\"\nusername = \"u\"";
    let error = directory.load(single, "a", &[]).unwrap_err().to_string();
    assert!(error.contains("redis.directory") && error.contains("tenants.source = \"single\""), "{error}");
}
