//! Free TCP ports on the loopback interface.
//!
//! Ports come from below the range from which the system gives ports to outgoing connections. A
//! server that is killed and started again must find its port free: from within that range any
//! connection on the machine could have taken it meanwhile, and a client that keeps trying to
//! connect to its dead server can even end up connected to itself.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, Result, bail};
use rand::Rng;

/// Lowest port taken: well above the ports of well-known services.
const LOWEST: u16 = 15_000;
/// Highest port taken, if the system's own range doesn't begin below it.
const HIGHEST: u16 = 32_000;
/// How many ports are tried before the system is asked for any port.
const ATTEMPTS: usize = 200;
/// How far above a cluster node's port its bus is.
const BUS_DISTANCE: u16 = 10_000;

/// A TCP port on 127.0.0.1 that was free a moment ago. Another process may take it before it is
/// used, so callers retry.
///
/// # Errors
/// When the system gives no port at all.
pub fn free_port() -> Result<u16> {
    let highest = ephemeral_start().unwrap_or(HIGHEST).clamp(LOWEST + 1_000, HIGHEST);
    let mut rng = rand::rng();
    for _ in 0..ATTEMPTS {
        let port = rng.random_range(LOWEST..highest);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    let any = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free TCP port on 127.0.0.1")?;
    Ok(any.local_addr()?.port())
}

/// A port whose cluster bus port, 10,000 above it, is free as well and below the system's own range.
pub(crate) fn free_port_with_bus() -> Result<u16> {
    // Where that range begins so low that no bus fits below it, one within it must do.
    let highest = ephemeral_start().filter(|start| *start > LOWEST + BUS_DISTANCE).unwrap_or(u16::MAX);
    for _ in 0..ATTEMPTS {
        let port = free_port()?;
        let bus = port.saturating_add(BUS_DISTANCE);
        if bus < highest && TcpListener::bind((Ipv4Addr::LOCALHOST, bus)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free TCP port on 127.0.0.1 for a node of a cluster and its bus")
}

/// The loopback address with this port.
pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn ephemeral_start() -> Option<u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    range.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_bus_of_a_cluster_node_has_a_free_port_that_no_outgoing_connection_takes() {
        let outgoing = ephemeral_start().filter(|start| *start > LOWEST + BUS_DISTANCE).unwrap_or(u16::MAX);
        for _ in 0..100 {
            let port = free_port_with_bus().unwrap();
            assert!(port + BUS_DISTANCE < outgoing, "{port}");
        }
    }
}
