//! What systemd is sent by a service of `Type=notify`: that the worker has started, how it is, that it drains, and its sign of life.
//!
//! The protocol is one datagram of `NAME=value` lines to the socket that `NOTIFY_SOCKET` names. Nothing here waits: a datagram that
//! can't be sent is logged once and dropped.
//!
//! There is no task for it. [`Notifier::while_running`] sends beside the worker's main future on the same thread, so that a thread that
//! hangs sends no sign of life.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    pin::pin,
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

/// Between two looks at the status, where there is no watchdog or its period is longer.
const LOOK: Duration = Duration::from_secs(5);
/// Signs of life within the watchdog's period: two may be lost or late.
const SIGNS: u32 = 3;

/// How the worker is.
pub(crate) struct Health {
    /// Otherwise a restart would help.
    pub alive: bool,
    /// For people, in `systemctl status`.
    pub text: String,
}

/// Where to send it. Without `NOTIFY_SOCKET` nothing is sent.
pub(crate) struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// The service manager restarts the worker after this long without a sign of life.
    watchdog: Option<Duration>,
    failed: bool,
    status: String,
}

impl Notifier {
    /// As the environment says.
    pub(crate) fn from_env() -> Self {
        let value = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        Self::new(value, std::process::id())
    }

    fn new(value: impl Fn(&str) -> Option<String>, pid: u32) -> Self {
        let mut notifier = Self { socket: None, watchdog: None, failed: false, status: String::new() };
        let Some(path) = value("NOTIFY_SOCKET") else { return notifier };
        match open(&path) {
            Ok(socket) => notifier.socket = Some(socket),
            Err(error) => {
                tracing::warn!(%error, "NOTIFY_SOCKET: can't be used, the service manager isn't notified")
            }
        }
        let is_ours = value("WATCHDOG_PID").is_none_or(|of| of == pid.to_string());
        let micros = value("WATCHDOG_USEC").and_then(|text| text.parse().ok()).filter(|micros| *micros > 0);
        notifier.watchdog = micros.filter(|_| is_ours).map(Duration::from_micros);
        notifier
    }

    /// The worker has started. It may be waiting for Redis or the tenant service: a start that waited for them would be
    /// broken off after `TimeoutStartSec` and begun again, for nothing.
    pub(crate) fn started(&mut self) {
        self.send("READY=1");
    }

    /// The worker drains.
    pub(crate) fn stopping(&mut self) {
        self.send("STOPPING=1");
    }

    /// Runs the future to its end, and sends meanwhile how the worker is, and signs of life as long as it is alive.
    pub(crate) async fn while_running<F: Future>(
        &mut self,
        health: impl Fn() -> Health,
        future: F,
    ) -> F::Output {
        let mut future = pin!(future);
        if self.socket.is_none() {
            return future.await;
        }
        let mut looks = interval(self.watchdog.map_or(LOOK, |period| (period / SIGNS).min(LOOK)));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                output = &mut future => return output,
                _ = looks.tick() => self.look(&health()),
            }
        }
    }

    fn look(&mut self, health: &Health) {
        let mut lines = Vec::new();
        if self.watchdog.is_some() && health.alive {
            lines.push("WATCHDOG=1".to_owned());
        }
        if self.status != health.text {
            self.status.clone_from(&health.text);
            // One line each.
            lines.push(format!("STATUS={}", health.text.replace(['\n', '\r'], " ")));
        }
        if !lines.is_empty() {
            self.send(&lines.join("\n"));
        }
    }

    fn send(&mut self, text: &str) {
        let Some((socket, address)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(text.as_bytes(), address)
            && !std::mem::replace(&mut self.failed, true)
        {
            tracing::warn!(%error, "NOTIFY_SOCKET: the service manager can't be notified");
        }
    }
}

/// An absolute path, or `@` and a name that is no file's.
fn open(path: &str) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::Cell;

    use super::*;

    const SECOND: &str = "1000000";

    struct Manager {
        socket: UnixDatagram,
        _folder: tempfile::TempDir,
    }

    impl Manager {
        /// A service manager's socket, and what is notified at it.
        fn start(watchdog: &str, watched: &str) -> (Self, Notifier) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("notify");
            let socket = UnixDatagram::bind(&path).unwrap();
            socket.set_nonblocking(true).unwrap();
            let path = path.display().to_string();
            let value = |name: &str| match name {
                "NOTIFY_SOCKET" => Some(path.clone()),
                "WATCHDOG_USEC" => Some(watchdog.to_owned()),
                "WATCHDOG_PID" => Some(watched.to_owned()),
                _ => None,
            };
            (Self { socket, _folder: folder }, Notifier::new(value, 7))
        }

        /// What has arrived since the last call.
        fn received(&self) -> Vec<String> {
            let mut all = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(length) = self.socket.recv(&mut buffer) {
                all.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
            }
            all
        }
    }

    fn health(alive: bool, text: &str) -> Health {
        Health { alive, text: text.to_owned() }
    }

    #[test]
    fn start_and_stop_are_one_datagram_each() {
        let (manager, mut notifier) = Manager::start("", "");
        notifier.started();
        notifier.stopping();
        assert_eq!(manager.received(), ["READY=1", "STOPPING=1"]);
    }

    #[test]
    fn an_abstract_socket_is_reached() {
        let name = format!("balance-sync-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        let value = |variable: &str| (variable == "NOTIFY_SOCKET").then(|| format!("@{name}"));
        Notifier::new(value, 7).started();
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
    }

    #[test]
    fn a_manager_that_reads_nothing_holds_nothing_up() {
        let (manager, mut notifier) = Manager::start(SECOND, "7");
        for _ in 0..10_000 {
            notifier.started();
        }
        assert!(notifier.failed);
        let received = manager.received();
        assert!(received.len() < 10_000 && received.iter().all(|text| text == "READY=1"));
    }

    #[tokio::test(start_paused = true)]
    async fn signs_of_life_come_three_times_per_period_and_end_with_the_life() {
        let (manager, mut notifier) = Manager::start(SECOND, "7");
        let alive = Cell::new(true);
        let now = || health(alive.get(), if alive.get() { "ready" } else { "stuck:\na task" });
        notifier
            .while_running(now, async {
                tokio::time::sleep(Duration::from_millis(1100)).await;
                assert_eq!(
                    manager.received(),
                    ["WATCHDOG=1\nSTATUS=ready", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]
                );
                alive.set(false);
                tokio::time::sleep(Duration::from_secs(60)).await;
                assert_eq!(manager.received(), ["STATUS=stuck: a task"]);
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_watchdog_only_changes_of_the_status_are_sent() {
        for (period, watched) in [("", ""), ("0", "7"), ("soon", "7"), (SECOND, "8")] {
            let (manager, mut notifier) = Manager::start(period, watched);
            let ready = Cell::new(false);
            let now = || health(true, if ready.get() { "ready" } else { "not ready" });
            notifier
                .while_running(now, async {
                    tokio::time::sleep(Duration::from_secs(60)).await;
                    ready.set(true);
                    tokio::time::sleep(Duration::from_secs(60)).await;
                })
                .await;
            assert_eq!(manager.received(), ["STATUS=not ready", "STATUS=ready"], "{period} {watched}");
        }
    }

    #[tokio::test]
    async fn without_a_socket_the_work_goes_on_as_it_is() {
        let mut notifier = Notifier::new(|_| None, 7);
        notifier.started();
        assert_eq!(notifier.while_running(|| health(true, ""), async { 5 }).await, 5);
        let nowhere = |name: &str| (name == "NOTIFY_SOCKET").then(|| "/nowhere/notify".to_owned());
        let mut notifier = Notifier::new(nowhere, 7);
        notifier.started();
        assert!(notifier.failed);
    }
}
