//! `sandbox break` and `sandbox mend`: orders to a sandbox that runs, by a socket beside its configuration file.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use balance_sync_cli::EXIT_OK;
use balance_sync_sandbox::{Breakage, Sandbox};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    time::timeout,
};

/// The socket's name, beside the configuration file.
const SOCKET: &str = "sandbox.socket";
/// Longest order or answer.
const LONGEST: u64 = 16 << 10;
/// Longest time for one.
const WITHIN: Duration = Duration::from_secs(30);

/// What a sandbox is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    /// Break this of this tenant.
    Break(String, Breakage),
    /// Undo whatever was broken of it.
    Mend(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Written {
    tenant: String,
    #[serde(default)]
    breaks: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    error: Option<String>,
}

/// Waits for orders from now on.
///
/// # Errors
/// When the socket can't be made.
pub(crate) fn listen(sandbox: &Sandbox) -> anyhow::Result<UnixListener> {
    let path = socket(sandbox.config_path());
    UnixListener::bind(&path).with_context(|| path.display().to_string())
}

/// Carries orders out, one after another. Never ends.
pub(crate) async fn serve(orders: &UnixListener, sandbox: &Sandbox) {
    loop {
        let served = match orders.accept().await {
            Ok((stream, _)) => {
                timeout(WITHIN, one(stream, sandbox)).await.unwrap_or_else(|late| Err(late.into()))
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = served {
            eprintln!("sandbox: an order failed: {error:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn one(mut stream: UnixStream, sandbox: &Sandbox) -> anyhow::Result<()> {
    let mut text = Vec::new();
    (&mut stream).take(LONGEST).read_to_end(&mut text).await?;
    let done = match serde_json::from_slice::<Written>(&text)? {
        Written { tenant, breaks: None } => sandbox.mend_tenant(&tenant).await,
        Written { tenant, breaks: Some(what) } => match Breakage::parse(&what) {
            Some(what) => sandbox.break_tenant(&tenant, what).await,
            None => bail!("{what}: no such breakage"),
        },
    };
    let answer = Answer { error: done.err().map(|error| format!("{error:#}")) };
    stream.write_all(&serde_json::to_vec(&answer)?).await?;
    Ok(stream.shutdown().await?)
}

/// Gives an order to the sandbox of this configuration file, and waits until it is carried out.
///
/// # Errors
/// When there is no such sandbox, or it can't be done.
pub(crate) async fn ask(config: &Path, order: &Order) -> anyhow::Result<u8> {
    let path = socket(config);
    let asking = async {
        let mut stream = UnixStream::connect(&path)
            .await
            .with_context(|| format!("no sandbox runs with {}", config.display()))?;
        let (tenant, breaks) = match order {
            Order::Break(tenant, what) => {
                let name = Breakage::ALL.iter().find(|(_, known)| known == what).map(|(name, _)| *name);
                (tenant, name.map(str::to_owned))
            }
            Order::Mend(tenant) => (tenant, None),
        };
        let written = Written { tenant: tenant.clone(), breaks };
        stream.write_all(&serde_json::to_vec(&written)?).await?;
        stream.shutdown().await?;
        let mut text = Vec::new();
        stream.take(LONGEST).read_to_end(&mut text).await?;
        anyhow::Ok(serde_json::from_slice::<Answer>(&text).context("the sandbox has ended")?)
    };
    let answer = timeout(WITHIN, asking).await.context("the sandbox doesn't answer")??;
    if let Some(error) = answer.error {
        bail!("{error}");
    }
    match order {
        Order::Break(tenant, _) => println!("{tenant} is broken"),
        Order::Mend(tenant) => println!("{tenant} is mended"),
    }
    Ok(EXIT_OK)
}

fn socket(config: &Path) -> PathBuf {
    config.with_file_name(SOCKET)
}
