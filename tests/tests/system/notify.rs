//! What a worker sends its service manager: the protocol of systemd's `Type=notify`, on a real socket.

use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};
use balance_sync_sandbox::{ServiceFault, ServiceRoute, eventually};
use balance_sync_tests::{SOON, Worker};
use tempfile::TempDir;

/// A socket in the place of systemd's.
struct Manager {
    socket: UnixDatagram,
    folder: TempDir,
    received: Mutex<Vec<String>>,
}

impl Manager {
    fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = UnixDatagram::bind(folder.path().join("notify"))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, folder, received: Mutex::default() })
    }

    fn path(&self) -> String {
        self.folder.path().join("notify").display().to_string()
    }

    /// All lines so far.
    fn lines(&self) -> Vec<String> {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            received.extend(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned));
        }
        received.clone()
    }

    async fn receives(&self, count: usize, line: &str) -> Result<()> {
        eventually(SOON, &format!("{count} times {line}"), || async {
            let lines = self.lines();
            ensure!(lines.iter().filter(|got| *got == line).count() >= count, "{lines:?}");
            Ok(())
        })
        .await
    }
}

#[tokio::test]
async fn a_worker_notifies_its_start_its_life_and_its_end() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 5).await?;
    let manager = Manager::start()?;
    let mut worker = Worker::of(&sandbox)
        .env("NOTIFY_SOCKET", &manager.path())
        .env("WATCHDOG_USEC", "300000")
        .start()
        .await?;
    manager.receives(1, "STATUS=ready").await?;
    manager.receives(5, "WATCHDOG=1").await?;
    assert_eq!(manager.lines()[0], "READY=1");
    assert!(!manager.lines().contains(&"STOPPING=1".to_owned()));
    assert_eq!(worker.stop().await?.code, Some(0));
    let lines = manager.lines();
    assert_eq!(lines.iter().filter(|line| *line == "STOPPING=1").count(), 1, "{lines:?}");
    assert_eq!(lines.iter().filter(|line| *line == "READY=1").count(), 1, "{lines:?}");
    Ok(())
}

/// A start that waited for the tenant service would be broken off by systemd, and begun again for nothing.
#[tokio::test]
async fn a_worker_without_its_tenant_service_has_started_and_is_alive() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 5).await?;
    sandbox.service().set_fault(ServiceRoute::List, ServiceFault::Status(503));
    let manager = Manager::start()?;
    let mut worker = Worker::of(&sandbox)
        .env("NOTIFY_SOCKET", &manager.path())
        .env("WATCHDOG_USEC", "300000")
        .start_unready()
        .await?;
    manager.receives(1, "READY=1").await?;
    manager.receives(1, "STATUS=not ready: no reconcile pass has known the tenants yet").await?;
    manager.receives(5, "WATCHDOG=1").await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
