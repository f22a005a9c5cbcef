//! A real Chromium with an empty profile, driven through its chromedriver.
//!
//! Both are processes under the sandbox's guard: they end with the test, by their process ids, even if that is killed, and
//! the profile goes with them. What the browser's console says and what it loads is part of every test: see
//! [`Browser::finish`].

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use balance_sync_sandbox::{Program, eventually, free_port};
use serde_json::{Value, json};
use thirtyfour::prelude::*;
use thirtyfour::{ChromiumLikeCapabilities, LoggingPrefsLogLevel, TypingData};

use crate::SOON;

/// Says that there is no browser, where there can't be one.
const VARIABLE: &str = "BALANCE_SYNC_BROWSER";
/// Names of the browser's program.
const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
/// Name of the driver's program.
const DRIVER: &str = "chromedriver";
/// Runs the browser in the guarded folder, where its profile goes; `$0` is the program.
const IN_ITS_FOLDER: &str = r#"HOME="$PWD" exec "$0" --user-data-dir="$PWD/profile" "$@" about:blank"#;
const FLAGS: [&str; 14] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--no-default-browser-check",
    "--remote-debugging-port=0",
    "--window-size=1280,800",
];
/// A script that looks for something in the page is repeated until it finds it; one look may take this long.
const LOOK_WITHIN: Duration = Duration::from_secs(10);

/// A running browser with one page.
pub struct Browser {
    driver: WebDriver,
    expected: Vec<String>,
    own: Vec<String>,
    // Last: they outlive what talks to them.
    _chromedriver: Program,
    _chromium: Program,
}

impl std::fmt::Debug for Browser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Browser").field("own", &self.own).finish_non_exhaustive()
    }
}

fn find(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    names.iter().find_map(|name| {
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
    })
}

/// The browser and its driver; `None` where it was said that there are none.
fn programs() -> Result<Option<(PathBuf, PathBuf)>> {
    if let (Some(browser), Some(driver)) = (find(&BROWSERS), find(&[DRIVER])) {
        return Ok(Some((browser, driver)));
    }
    if std::env::var(VARIABLE).is_ok_and(|value| value == "none") {
        return Ok(None);
    }
    bail!(
        "no Chromium with its chromedriver on the PATH: `make setup` installs them (Debian: chromium, chromium-driver); \
         {VARIABLE}=none skips the tests in a browser"
    )
}

impl Browser {
    /// Starts a browser. `None`, said loudly, where there is none and can be none.
    ///
    /// # Errors
    /// When there is none though there should be, or it doesn't start.
    pub async fn start() -> Result<Option<Self>> {
        let Some((browser, driver)) = programs()? else {
            // Past the capture of a test's output: a skipped test must not look like a passed one.
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            let said = format!("\n*** SKIPPED, NO BROWSER HERE: {test} ({VARIABLE}=none) ***\n\n");
            std::io::stderr().write_all(said.as_bytes())?;
            return Ok(None);
        };
        // The TLS of the client is never used, but it wants to know by whom.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut arguments = vec!["-c".to_owned(), IN_ITS_FOLDER.to_owned(), browser.display().to_string()];
        arguments.extend(FLAGS.map(str::to_owned));
        let chromium = Program::start("chromium", Path::new("/bin/sh"), &arguments, &[])?;
        let port = free_port()?;
        let arguments = [format!("--port={port}")];
        let chromedriver = Program::start("chromedriver", &driver, &arguments, &[])?;
        let debugger = eventually(SOON, "a browser that can be driven", || async {
            let log = chromium.log_tail();
            let address =
                log.split("DevTools listening on ws://").nth(1).and_then(|rest| rest.split('/').next());
            address.map(str::to_owned).with_context(|| log.clone())
        })
        .await?;
        let mut capabilities = DesiredCapabilities::chrome();
        capabilities.set_debugger_address(&debugger)?;
        capabilities.set_logging_prefs("browser", LoggingPrefsLogLevel::All)?;
        capabilities.set_logging_prefs("performance", LoggingPrefsLogLevel::All)?;
        let driver = eventually(SOON, "a session of the driver", || async {
            let url = format!("http://127.0.0.1:{port}");
            WebDriver::new(url, capabilities.clone()).await
        })
        .await?;
        driver.set_script_timeout(LOOK_WITHIN).await?;
        let expected = Vec::new();
        let browser =
            Self { driver, expected, own: Vec::new(), _chromedriver: chromedriver, _chromium: chromium };
        browser.screen(1280, 800, "light").await?;
        Ok(Some(browser))
    }

    /// Lines of the console with this text don't fail the test.
    pub fn expect_error(&mut self, text: &str) {
        self.expected.push(text.to_owned());
    }

    /// Opens an address; from then on its server may be talked to.
    ///
    /// # Errors
    /// When it can't be loaded.
    pub async fn open(&mut self, url: &str) -> Result<()> {
        let origin = url::Url::parse(url)?.origin().ascii_serialization();
        if !self.own.contains(&origin) {
            self.own.push(origin);
        }
        Ok(self.driver.goto(url).await?)
    }

    /// Opens a tab with this address, beside those that are open, and goes on in it.
    ///
    /// # Errors
    /// When the driver refuses.
    pub async fn open_tab(&mut self, url: &str) -> Result<()> {
        let tab = self.driver.new_tab().await?;
        self.driver.switch_to_window(tab).await?;
        self.open(url).await
    }

    /// Goes on in the tab of this number, in the order in which they were opened.
    ///
    /// # Errors
    /// When there is none, or the driver refuses.
    pub async fn tab(&self, number: usize) -> Result<()> {
        let tabs = self.driver.windows().await?;
        let tab = tabs.get(number).with_context(|| format!("there are {} tabs", tabs.len()))?;
        Ok(self.driver.switch_to_window(tab.clone()).await?)
    }

    /// Sets the size of the view in CSS pixels (a phone's below 600) and the colour scheme that the system prefers.
    ///
    /// # Errors
    /// When the driver refuses.
    pub async fn screen(&self, width: u32, height: u32, scheme: &str) -> Result<()> {
        let cdp = self.driver.cdp();
        let metrics =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        cdp.send_raw("Emulation.setDeviceMetricsOverride", metrics).await?;
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        cdp.send_raw("Emulation.setEmulatedMedia", media).await?;
        Ok(())
    }

    /// Saves what pages offer for download in this folder, under the names that they give it.
    ///
    /// # Errors
    /// When the driver refuses.
    pub async fn save_downloads(&self, folder: &Path) -> Result<()> {
        let options = json!({ "behavior": "allow", "downloadPath": folder });
        self.driver.cdp().send_raw("Browser.setDownloadBehavior", options).await?;
        Ok(())
    }

    /// What an expression gives in the page.
    ///
    /// # Errors
    /// When it throws.
    pub async fn eval(&self, expression: &str) -> Result<Value> {
        let found = self.driver.execute(format!("return ({expression});"), Vec::new()).await;
        Ok(found.with_context(|| expression.to_owned())?.json().clone())
    }

    /// What an expression that is a promise gives in the page.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn settle(&self, promise: &str) -> Result<Value> {
        let script = format!(
            "const done = arguments[0]; ({promise}).then((value) => done({{ value }}), (error) => done({{ error: `${{error}}` }}));"
        );
        let found =
            self.driver.execute_async(script, Vec::new()).await.with_context(|| promise.to_owned())?;
        let found = found.json().clone();
        ensure!(found.get("error").is_none(), "{promise}: {}", found["error"]);
        Ok(found["value"].clone())
    }

    /// Waits until an expression is true in the page.
    ///
    /// # Errors
    /// When it is not in time; says what the page shows.
    pub async fn until(&self, what: &str, expression: &str) -> Result<()> {
        let waited = eventually(SOON, what, || async {
            let value = self.eval(expression).await?;
            ensure!(value == json!(true), "{expression} is {value}");
            anyhow::Ok(())
        })
        .await;
        if waited.is_err() {
            let page = self.eval("location.href + '\\n' + document.body.innerText").await.unwrap_or_default();
            return waited.with_context(|| format!("the page: {}", page.as_str().unwrap_or_default()));
        }
        waited
    }

    /// The visible text of the first element; empty without one.
    ///
    /// # Errors
    /// When the page can't be asked.
    pub async fn text(&self, css: &str) -> Result<String> {
        let found = self.eval(&format!("document.querySelector({})?.innerText ?? ''", json!(css))).await?;
        Ok(found.as_str().unwrap_or_default().to_owned())
    }

    /// Waits until the first element's visible text contains this.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn shows(&self, css: &str, text: &str) -> Result<()> {
        let look =
            format!("(document.querySelector({})?.innerText ?? '').includes({})", json!(css), json!(text));
        self.until(&format!("{text:?} in {css}"), &look).await
    }

    /// Waits until no element's visible text contains this.
    ///
    /// # Errors
    /// When one still does.
    pub async fn lacks(&self, css: &str, text: &str) -> Result<()> {
        let look = format!(
            "![...document.querySelectorAll({})].some((node) => node.innerText.includes({}))",
            json!(css),
            json!(text)
        );
        self.until(&format!("no {text:?} in {css}"), &look).await
    }

    /// How many elements are shown.
    ///
    /// # Errors
    /// When the page can't be asked.
    pub async fn count(&self, css: &str) -> Result<u64> {
        let look = format!(
            "[...document.querySelectorAll({})].filter((node) => node.checkVisibility()).length",
            json!(css)
        );
        Ok(self.eval(&look).await?.as_u64().unwrap_or_default())
    }

    /// Clicks the first visible button or link of this name inside `within`, as a person does: at its place, in front.
    ///
    /// # Errors
    /// When there is none in time, or another element covers it.
    pub async fn press(&self, within: &str, name: &str) -> Result<()> {
        let look = format!(
            "return [...document.querySelectorAll({})].flatMap((part) => [...part.querySelectorAll('button, a, summary')])
               .find((node) => node.checkVisibility() && !node.disabled
                 && (node.getAttribute('aria-label') ?? node.innerText).trim().startsWith({}))",
            json!(within),
            json!(name)
        );
        let pressed = eventually(SOON, &format!("the button {name:?} in {within}"), || async {
            // It may be replaced between the look and the click, by the next event.
            let found = self.driver.execute(look.clone(), Vec::new()).await?;
            found.element()?.click().await?;
            anyhow::Ok(())
        })
        .await;
        if pressed.is_err() {
            let page = self.eval("location.href + '\\n' + document.body.innerText").await.unwrap_or_default();
            return pressed.with_context(|| format!("the page: {}", page.as_str().unwrap_or_default()));
        }
        pressed
    }

    /// Types into a field, in place of what is there.
    ///
    /// # Errors
    /// When there is no such field.
    pub async fn fill(&self, css: &str, text: &str) -> Result<()> {
        self.until(&format!("the field {css}"), &format!("document.querySelector({}) !== null", json!(css)))
            .await?;
        let field = self.driver.find(By::Css(css)).await?;
        field.clear().await?;
        Ok(field.send_keys(text).await?)
    }

    /// Presses keys, wherever the focus is.
    ///
    /// # Errors
    /// When the driver refuses.
    pub async fn keys(&self, keys: impl Into<TypingData>) -> Result<()> {
        Ok(self.driver.action_chain().send_keys(keys).perform().await?)
    }

    /// Presses a key while Shift is held.
    ///
    /// # Errors
    /// When the driver refuses.
    pub async fn shifted(&self, key: Key) -> Result<()> {
        Ok(self
            .driver
            .action_chain()
            .key_down(Key::Shift)
            .send_keys(key)
            .key_up(Key::Shift)
            .perform()
            .await?)
    }

    /// A picture of what is shown; with `whole`, of the whole page.
    ///
    /// # Errors
    /// When it can't be taken.
    pub async fn picture(&self, whole: bool) -> Result<Vec<u8>> {
        let options = json!({ "format": "png", "captureBeyondViewport": whole, "optimizeForSpeed": false });
        let taken = self.driver.cdp().send_raw("Page.captureScreenshot", options).await?;
        let data = taken["data"].as_str().context("no picture")?;
        Ok(base64::Engine::decode(&base64::engine::general_purpose::STANDARD, data)?)
    }

    /// Ends the browser, after a look at what its console said and what it loaded: an error that isn't expected, or a
    /// request to anything but the addresses that were opened, fails the test.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn finish(self) -> Result<()> {
        let mut faults = Vec::new();
        for entry in self.driver.get_log("browser").await? {
            let expected = self.expected.iter().any(|text| entry.message.contains(text));
            if entry.level == "SEVERE" && !expected {
                faults.push(format!("console: {}", entry.message));
            }
        }
        for entry in self.driver.get_log("performance").await? {
            let event: Value = serde_json::from_str(&entry.message)?;
            let event = &event["message"];
            if event["method"] != "Network.requestWillBeSent" {
                continue;
            }
            let url = event["params"]["request"]["url"].as_str().unwrap_or_default();
            let own = self.own.iter().any(|origin| url.starts_with(&format!("{origin}/")));
            if !own && !url.starts_with("data:") && !url.starts_with("chrome:") && !url.starts_with("about:")
            {
                faults.push(format!("request: {url}"));
            }
        }
        self.driver.quit().await?;
        ensure!(faults.is_empty(), "{} faults in the browser:\n{}", faults.len(), faults.join("\n"));
        Ok(())
    }
}
