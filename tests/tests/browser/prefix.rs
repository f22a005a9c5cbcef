//! The dashboard behind a proxy that has it under a path of its own.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::{browser, worker};

const PREFIX: &str = "/ops/balance-sync";
/// Longest head of a request.
const HEAD: usize = 16 << 10;

/// A proxy that takes the prefix off, and has nothing elsewhere.
async fn proxy(to: SocketAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(async move {
                // A browser that has gone ends it.
                let _ = serve(client, to).await;
            });
        }
    });
    Ok(address)
}

async fn serve(mut client: TcpStream, to: SocketAddr) -> Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        ensure!(head.len() < HEAD && client.read_buf(&mut head).await? > 0, "no head");
    }
    let text = String::from_utf8(head)?;
    let (line, rest) = text.split_once("\r\n").context("no request line")?;
    let Some((method, path)) = line.split_once(PREFIX).filter(|(_, path)| path.starts_with('/')) else {
        client.write_all(b"HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await?;
        return Ok(());
    };
    // One request per connection, so that no other has to be read.
    let rest = rest.replace("Connection: keep-alive\r\n", "");
    let mut server = TcpStream::connect(to).await?;
    server.write_all(format!("{method}{path}\r\nConnection: close\r\n{rest}").as_bytes()).await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

#[tokio::test]
async fn the_dashboard_works_under_a_path_prefix() -> Result<()> {
    let mut browser = browser!();
    let sandbox = balance_sync_tests::sandbox(2, 5).await?;
    let worker = worker(&sandbox, "first").start().await?;
    let tenant = sandbox.tenants().remove(0);
    let address = proxy(worker.address().context("it listens")?).await?;

    browser.open(&format!("http://{address}{PREFIX}/")).await?;
    browser.shows("#verdict", "All tenants are on time").await?;
    browser.shows(".connection", "Live").await?;
    browser.press(".tabs", "Tenants").await?;
    browser.until("the address", &format!("location.pathname === '{PREFIX}/tenants'")).await?;
    browser.shows(".grid", &tenant.id).await?;
    browser
        .until("the tab", "document.querySelector('.tabs [aria-current]').innerText.startsWith('Tenants')")
        .await?;
    browser.press(".grid-body", &tenant.id).await?;
    browser.shows("h1", &tenant.id).await?;
    browser.until("the address", &format!("location.pathname === '{PREFIX}/tenants/{}'", tenant.id)).await?;

    // A page that is opened by its address, a level deeper than the others.
    browser.open(&format!("http://{address}{PREFIX}/tenants/{}", tenant.id)).await?;
    browser.shows("h1", &tenant.id).await?;
    browser.shows(".connection", "Live").await?;
    browser.press(".actions", "Flush now").await?;
    browser.press("dialog", "Flush now").await?;
    browser.shows(".toasts", "done by first").await?;
    browser.press(".crumbs", "Tenants").await?;
    browser.shows(".grid", &tenant.id).await?;
    for tab in ["Quarantine", "Why", "Actions", "Overview"] {
        browser.press(".tabs", tab).await?;
        browser.shows("h1", tab).await?;
    }
    browser.press(".top", "balance-sync, overview").await?;
    browser.until("the address", &format!("location.pathname === '{PREFIX}/'")).await?;
    browser.finish().await
}
