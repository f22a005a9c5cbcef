//! `probe`: what a probe of an orchestrator asks, for images and pods without an HTTP client.

use std::time::Duration;

use anyhow::Context as _;
use balance_sync_domain::printable;
use reqwest::redirect::Policy;
use tokio::time::Instant;

use crate::{
    EXIT_OK,
    args::{ProbeArgs, seconds},
};

/// The answer was another one, or there was none.
const EXIT_NOT_WELL: u8 = 1;
/// For one answer. The probes of the chart wait as long.
const TIMEOUT: Duration = Duration::from_secs(3);
const ASK_EVERY: Duration = Duration::from_millis(500);
/// Of what is answered, this much is shown.
const SHOWN_BYTES: usize = 1024;

/// Asks until the answer is good or the time is over; prints the last one.
///
/// # Errors
/// When no HTTP client can be built.
pub(crate) async fn probe(args: ProbeArgs) -> anyhow::Result<u8> {
    // Without proxies and redirects: another address' answer says nothing about this one.
    let client = reqwest::Client::builder().no_proxy().redirect(Policy::none()).timeout(TIMEOUT).build();
    let client = client.context("an HTTP client")?;
    let until = Instant::now() + seconds(args.wait.unwrap_or_default());
    loop {
        let (is_good, said) = match ask(&client, &args).await {
            Ok(answer) => answer,
            Err(error) => (false, format!("{:#}", anyhow::Error::new(error.without_url()))),
        };
        if is_good || Instant::now() + ASK_EVERY > until {
            println!("{}", printable(&said));
            return Ok(if is_good { EXIT_OK } else { EXIT_NOT_WELL });
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

async fn ask(client: &reqwest::Client, args: &ProbeArgs) -> reqwest::Result<(bool, String)> {
    let mut answer = client.get(args.url.clone()).send().await?;
    let status = answer.status();
    let mut body = Vec::new();
    while body.len() < SHOWN_BYTES
        && let Some(part) = answer.chunk().await?
    {
        body.extend_from_slice(&part);
    }
    body.truncate(SHOWN_BYTES);
    Ok((status.is_success(), format!("{status} {}", String::from_utf8_lossy(&body).trim())))
}
