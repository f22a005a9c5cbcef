//! The dashboard: a page, its modules and its style, embedded in the binary, so that it works where there is no internet
//! and always fits the worker that serves it.
//!
//! All pages are the same `index.html`; which one is shown is decided in the browser by the path. Its addresses are relative, as a
//! proxy may have the dashboard under a prefix that is not known here. Every file carries a
//! tag of its content and is asked for again each time: a worker of another version behind the same address must not meet
//! the modules of this one.

mod tables;

use std::{future::ready, sync::LazyLock};

use actix_web::{
    HttpRequest, HttpResponse, guard,
    http::header::{
        CONTENT_SECURITY_POLICY, CONTENT_TYPE, CacheControl, CacheDirective, ETag, EntityTag, Header,
        IfNoneMatch,
    },
    web::{self, ServiceConfig},
};

/// Nothing is loaded from elsewhere, nothing in the page is run or styled inline, and no other page may frame it or
/// receive its forms.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// The paths of pages.
const PAGES: [&str; 6] = ["/", "/tenants", "/tenants/{id}", "/quarantine", "/why", "/actions"];

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

/// An embedded file.
#[derive(Debug, Clone, Copy)]
struct File {
    /// Below `/assets/`.
    name: &'static str,
    content_type: &'static str,
    body: &'static str,
}

macro_rules! file {
    ($name:literal, $content_type:expr) => {
        File { name: $name, content_type: $content_type, body: include_str!(concat!("../ui/", $name)) }
    };
}

const INDEX: File = file!("index.html", HTML);
/// The same for pages a level deeper.
static DEEPER: LazyLock<String> = LazyLock::new(|| INDEX.body.replace("=\"./", "=\"../"));

const ASSETS: [File; 34] = [
    file!("actions.js", SCRIPT),
    file!("advice.js", SCRIPT),
    file!("api.js", SCRIPT),
    file!("base.css", STYLE),
    file!("base.js", SCRIPT),
    file!("chart.js", SCRIPT),
    file!("day.js", SCRIPT),
    file!("dialog.js", SCRIPT),
    file!("dom.js", SCRIPT),
    file!("export.js", SCRIPT),
    file!("format.js", SCRIPT),
    file!("grid.js", SCRIPT),
    file!("heat.js", SCRIPT),
    file!("hub.js", SCRIPT),
    file!("icon-alert.svg", IMAGE),
    file!("icon.svg", IMAGE),
    file!("live.js", SCRIPT),
    file!("main.js", SCRIPT),
    file!("pages.css", STYLE),
    file!("pages/actions.js", SCRIPT),
    file!("pages/overview.js", SCRIPT),
    file!("pages/quarantine.js", SCRIPT),
    file!("pages/recovery.js", SCRIPT),
    file!("pages/sign-in.js", SCRIPT),
    file!("pages/tenant.js", SCRIPT),
    file!("pages/tenants.js", SCRIPT),
    file!("pages/why.js", SCRIPT),
    file!("parts.css", STYLE),
    file!("parts.js", SCRIPT),
    file!("queues.js", SCRIPT),
    file!("rollout.js", SCRIPT),
    file!("shadow.js", SCRIPT),
    file!("stream.js", SCRIPT),
    file!("theme.js", SCRIPT),
];

/// All assets: the embedded files, and the module of tables.
fn assets() -> impl Iterator<Item = File> {
    let tables = File { name: "tables.js", content_type: SCRIPT, body: tables::script() };
    ASSETS.into_iter().chain([tables])
}

/// Pages and assets. They hold nothing of any tenant, so they need no token: the sign-in page is one of them.
pub(crate) fn routes(config: &mut ServiceConfig) {
    for path in PAGES {
        let deeper = path.matches('/').count() > 1;
        config.service(resource(path, if deeper { File { body: &DEEPER, ..INDEX } } else { INDEX }));
    }
    for file in assets() {
        config.service(resource(&format!("/assets/{}", file.name), file));
    }
}

/// A path that answers GET and HEAD with this file, and 405 to everything else.
fn resource(path: &str, file: File) -> actix_web::Resource {
    let tag = EntityTag::new_strong(format!("{:016x}", digest(file.body.as_bytes())));
    web::resource(path)
        .route(
            web::route()
                .guard(guard::Any(guard::Get()).or(guard::Head()))
                .to(move |request: HttpRequest| ready(file.answer(&request, &tag))),
        )
        .default_service(web::to(|| {
            ready(HttpResponse::MethodNotAllowed().insert_header(("allow", "GET, HEAD")).finish())
        }))
}

impl File {
    fn answer(&self, request: &HttpRequest, tag: &EntityTag) -> HttpResponse {
        let known = match IfNoneMatch::parse(request) {
            Ok(IfNoneMatch::Any) => true,
            Ok(IfNoneMatch::Items(tags)) => tags.iter().any(|one| one.weak_eq(tag)),
            Err(_) => false,
        };
        let mut response = if known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
        response
            .insert_header(ETag(tag.clone()))
            .insert_header(CacheControl(vec![CacheDirective::NoCache]))
            .insert_header((CONTENT_SECURITY_POLICY, POLICY));
        if known {
            return response.finish();
        }
        response.insert_header((CONTENT_TYPE, self.content_type)).body(self.body)
    }
}

/// FNV-1a: tells two versions of a file apart, which is all that a tag is for.
fn digest(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    use actix_web::{App, dev::ServiceResponse, http::StatusCode, test as client};
    use balance_sync_engine::{reason::Reason, state::TenantState};

    use super::*;

    fn files_in(folder: &Path, below: &str, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).expect("the folder of the dashboard").flatten() {
            let name = format!("{below}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                files_in(&entry.path(), &format!("{name}/"), found);
            } else {
                found.insert(name);
            }
        }
    }

    #[test]
    fn every_file_of_the_dashboard_is_embedded() {
        let mut there = BTreeSet::new();
        files_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("ui"), "", &mut there);
        let embedded: BTreeSet<_> = ASSETS.iter().chain([&INDEX]).map(|file| file.name.to_owned()).collect();
        assert_eq!(there, embedded);
    }

    #[test]
    fn nothing_parses_markup_or_reaches_outside() {
        for file in assets().chain([INDEX]) {
            for forbidden in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "https://"]
            {
                assert!(!file.body.contains(forbidden), "{forbidden} in {}", file.name);
            }
            let plain = file.body.replace("http://www.w3.org/", "");
            assert!(!plain.contains("http://"), "an address in {}", file.name);
        }
        // The policy would refuse these; without it they would be inline code.
        assert!(!INDEX.body.contains(" style=") && !INDEX.body.contains("onclick"));
        assert!(!INDEX.body.contains("<script>") && !INDEX.body.contains("<style"));
    }

    /// The rows of a section's table: the names in the first column, and the other cells.
    fn documented(section: &str) -> BTreeMap<&'static str, Vec<&'static str>> {
        let guide = include_str!("../../../docs/operations.md");
        let section =
            guide.split(section).nth(1).and_then(|rest| rest.split("\n## ").next()).expect("the section");
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        rows.flat_map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
            cells[0].split(", ").map(|name| (name.trim_matches('`'), cells[1..].to_vec())).collect::<Vec<_>>()
        })
        .collect()
    }

    #[test]
    fn every_reason_is_documented_with_its_pace_and_no_other() {
        let documented = documented("\n## Reasons");
        let names: BTreeSet<_> = documented.keys().copied().collect();
        assert_eq!(names, Reason::NAMES.into_iter().collect(), "docs/operations.md");
        for reason in Reason::ALL {
            assert_eq!(
                documented[reason.as_str()][0],
                reason.pace().as_str(),
                "{reason} in docs/operations.md"
            );
        }
    }

    #[test]
    fn every_state_is_documented_and_no_other() {
        let documented: BTreeSet<_> = documented("\n## States of a tenant").into_keys().collect();
        assert_eq!(documented, TenantState::NAMES.into_iter().collect());
    }

    #[test]
    fn every_reason_of_quarantine_is_documented_and_explained_and_no_other() {
        use balance_sync_domain::QuarantineReason::{self, ValueDeletionMarker, ValueUnknownFormat};
        let of_members = |name: &str| name.starts_with("member_");
        let mut documented: BTreeSet<_> = documented("\n## Quarantine").into_keys().collect();
        assert!(documented.remove("member_…"), "docs/operations.md");
        // Those two keep a member scheduled: they are reasons of a tenant, or none at all.
        let listed = QuarantineReason::ALL
            .into_iter()
            .filter(|reason| !matches!(reason, ValueUnknownFormat | ValueDeletionMarker));
        let names: BTreeSet<_> =
            listed.map(QuarantineReason::as_str).filter(|name| !of_members(name)).collect();
        documented.retain(|name| !of_members(name));
        assert_eq!(documented, names, "docs/operations.md");
        let advice = assets().find(|file| file.name == "advice.js").expect("the advice").body;
        for name in names.into_iter().filter(|name| !name.starts_with("value_")) {
            assert!(advice.contains(&format!("\n  {name}: \"")), "{name} in advice.js");
        }
    }

    /// The runbook names reasons as a part of its instructions: one that was renamed would lead nowhere.
    #[test]
    fn the_runbook_names_no_reason_that_does_not_exist() {
        let runbook = include_str!("../../../docs/runbook.md");
        let named = runbook.split('`').skip(1).step_by(2).filter(|code| {
            code.chars().all(|c| c.is_ascii_lowercase() || c == '_')
                && ["postgres_", "redis_", "tenant_", "collector_"].iter().any(|side| code.starts_with(side))
                // The label of metrics.
                && *code != "tenant_id"
        });
        let unknown: Vec<_> = named.filter(|name| Reason::parse(name).is_none()).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        assert!(runbook.contains("operations.md#reasons-and-what-to-do"));
    }

    /// The colours of one theme: those between this text and the end of its block.
    fn colours(after: &str) -> BTreeMap<&'static str, f64> {
        let style = ASSETS.iter().find(|file| file.name == "base.css").expect("the style").body;
        let block = style.split(after).nth(1).and_then(|rest| rest.split('}').next()).expect("a theme");
        let colour = |line: &'static str| {
            let (name, hex) = line.trim().strip_prefix("--")?.split_once(": #")?;
            let linear = |at: usize| {
                let value = f64::from(u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()?) / 255.0;
                Some(if value <= 0.03928 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) })
            };
            // Relative luminance, as the Web Content Accessibility Guidelines define it.
            Some((name, 0.2126 * linear(0)? + 0.7152 * linear(2)? + 0.0722 * linear(4)?))
        };
        block.lines().filter_map(colour).collect()
    }

    #[test]
    fn text_can_be_read_in_both_themes() {
        let dark = colours(":root[data-theme=\"dark\"] {");
        assert_eq!(
            dark,
            colours(":root:not([data-theme=\"light\"]) {"),
            "the system's dark is the chosen dark"
        );
        let pairs = [
            ("text", "page card raised sunken accent-soft"),
            ("soft", "page card raised sunken accent-soft"),
            ("accent", "page card sunken accent-soft"),
            ("accent-text", "accent"),
            ("good", "card good-soft"),
            ("warn", "card raised warn-soft"),
            ("bad", "card raised bad-soft"),
            ("note", "card note-soft"),
            ("raised", "bad"),
        ];
        for theme in [colours(":root {"), dark] {
            for (text, surfaces) in pairs {
                for surface in surfaces.split(' ') {
                    let (a, b) = (theme[text] + 0.05, theme[surface] + 0.05);
                    let contrast = (a / b).max(b / a);
                    assert!(contrast >= 4.5, "{text} on {surface}: {contrast:.2}");
                }
            }
        }
    }

    fn header<B>(answer: &ServiceResponse<B>, name: &str) -> String {
        let value = answer.headers().get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    }

    #[actix_web::test]
    async fn pages_and_assets_are_served_with_policy_and_tag() {
        let app = client::init_service(App::new().configure(routes)).await;
        for path in ["/", "/tenants", "/tenants/acme", "/quarantine", "/why", "/actions"] {
            let answer = client::call_service(&app, client::TestRequest::get().uri(path).to_request()).await;
            assert_eq!(answer.status(), StatusCode::OK, "{path}");
            assert_eq!(header(&answer, "content-type"), HTML);
            assert_eq!(header(&answer, "content-security-policy"), POLICY);
            assert_eq!(header(&answer, "cache-control"), "no-cache");
        }
        for file in assets() {
            let path = format!("/assets/{}", file.name);
            let answer = client::call_service(&app, client::TestRequest::get().uri(&path).to_request()).await;
            assert_eq!(answer.status(), StatusCode::OK, "{path}");
            assert_eq!(header(&answer, "content-type"), file.content_type, "{path}");
            let tag = header(&answer, "etag");
            assert_eq!(client::read_body(answer).await, file.body.as_bytes());

            let again =
                client::TestRequest::get().uri(&path).insert_header(("if-none-match", tag)).to_request();
            let again = client::call_service(&app, again).await;
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
            assert!(client::read_body(again).await.is_empty());
            let other = client::TestRequest::get()
                .uri(&path)
                .insert_header(("if-none-match", "\"other\""))
                .to_request();
            assert_eq!(client::call_service(&app, other).await.status(), StatusCode::OK);
        }
        for (path, status) in
            [("/assets/none.js", 404), ("/nothing", 404), ("/tenants/a/b", 404), ("/assets/", 404)]
        {
            let answer = client::call_service(&app, client::TestRequest::get().uri(path).to_request()).await;
            assert_eq!(answer.status().as_u16(), status, "{path}");
        }
        let posted =
            client::call_service(&app, client::TestRequest::post().uri("/tenants").to_request()).await;
        assert_eq!(posted.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
