//! Redis Cluster: every key of every tenant is in one slot, so that one node serves all of them.
//!
//! Which node that is comes from `CLUSTER SLOTS`, and from `MOVED`, which every other node answers.
//!
//! `ASK` is not followed. While the slot is being moved, the node that imports it answers keys that have not arrived yet as if
//! they did not exist. A script would take their balances for lost. The tenant waits until the slot has moved.

use redis::{ErrorKind, RedisError, ServerErrorKind, Value};

use crate::sentinel::Address;

/// The slot of `{transactions}`.
const SLOT: u16 = 12_305;
/// Nodes that are remembered at most.
const NODES_LIMIT: usize = 64;

/// The node that serves the slot by this answer of the node at `from`; `None` for any answer but `MOVED`.
pub(crate) fn moved_to(error: &RedisError, from: &Address) -> Option<Address> {
    let (address, _) = error.redirect_node()?;
    let moved = error.kind() == ErrorKind::Server(ServerErrorKind::Moved);
    moved.then(|| address_in(address, from)).flatten()
}

/// `host:port` of a redirection; without a host it is that of the node that answered.
fn address_in(text: &str, from: &Address) -> Option<Address> {
    let (host, port) = text.rsplit_once(':')?;
    let host = if host.is_empty() { from.0.as_str() } else { host };
    Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok().filter(|port| *port > 0)?))
}

/// What is known of a cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct Nodes {
    /// The node that served the slot last.
    owner: Option<Address>,
    /// All nodes that were named.
    known: Vec<Address>,
}

impl Nodes {
    /// Whether the server is known to belong to a cluster.
    pub(crate) fn is_cluster(&self) -> bool {
        self.owner.is_some()
    }

    /// The slot is served by this node.
    pub(crate) fn moved_to(&mut self, owner: Address) {
        self.remember(owner.clone());
        self.owner = Some(owner);
    }

    pub(crate) fn remember(&mut self, node: Address) {
        if !self.known.contains(&node) && self.known.len() < NODES_LIMIT {
            self.known.push(node);
        }
    }

    /// Takes what a node answered.
    pub(crate) fn learn(&mut self, topology: Topology) {
        // Nodes that have left the cluster are forgotten.
        self.known = topology.nodes;
        self.known.truncate(NODES_LIMIT);
        if let Some(owner) = topology.owner {
            self.moved_to(owner);
        }
    }

    /// The nodes to ask, those first that are most likely to serve the slot, then the configured ones.
    pub(crate) fn candidates(&self, configured: &[Address]) -> Vec<Address> {
        let mut candidates: Vec<Address> = Vec::new();
        for node in self.owner.iter().chain(&self.known).chain(configured) {
            if !candidates.contains(node) {
                candidates.push(node.clone());
            }
        }
        candidates
    }
}

/// What a node answers to `CLUSTER SLOTS`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Topology {
    /// The node that serves the slot; `None` if no node does.
    pub(crate) owner: Option<Address>,
    nodes: Vec<Address>,
}

impl Topology {
    /// Reads the answer of the node at `from`. What can't be read is left out.
    pub(crate) fn read(answer: &Value, from: &Address) -> Self {
        let mut topology = Self { owner: None, nodes: Vec::new() };
        let Value::Array(ranges) = answer else { return topology };
        for range in ranges {
            let Value::Array(parts) = range else { continue };
            let [Value::Int(first), Value::Int(last), nodes @ ..] = parts.as_slice() else { continue };
            let nodes: Vec<Address> = nodes.iter().filter_map(|node| node_in(node, from)).collect();
            if (*first..=*last).contains(&i64::from(SLOT)) {
                topology.owner = nodes.first().cloned();
            }
            for node in nodes {
                if !topology.nodes.contains(&node) {
                    topology.nodes.push(node);
                }
            }
        }
        topology
    }
}

/// `[host, port, …]`; the host may be null or empty when the node does not know its own.
fn node_in(node: &Value, from: &Address) -> Option<Address> {
    let Value::Array(parts) = node else { return None };
    let [host, Value::Int(port), ..] = parts.as_slice() else { return None };
    let host = match host {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?,
        Value::SimpleString(text) => text.as_str(),
        Value::Nil => "",
        _ => return None,
    };
    // "?" stands for a host name that is not known.
    let host = if host.is_empty() || host == "?" { from.0.as_str() } else { host };
    Some((host.to_owned(), u16::try_from(*port).ok().filter(|port| *port > 0)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(host: &str, port: u16) -> Address {
        (host.to_owned(), port)
    }

    fn entry(host: Value, port: i64) -> Value {
        Value::Array(vec![host, Value::Int(port), Value::BulkString(b"id".to_vec())])
    }

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn the_slot_is_that_of_the_hash_tag() {
        // CRC16 as in the cluster's specification.
        let crc = b"transactions".iter().fold(0u16, |crc, byte| {
            (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
            })
        });
        assert_eq!(crc % 16_384, SLOT);
    }

    #[test]
    fn the_owner_of_the_slot_is_found() {
        let from = node("seed", 7000);
        let range = |first, last, nodes: Vec<Value>| {
            Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat())
        };
        let answer = Value::Array(vec![
            range(0, 10_000, vec![entry(text("a"), 1), entry(text("b"), 2)]),
            range(10_001, 16_383, vec![entry(Value::Nil, 3), entry(text("d"), 70_000), text("rubbish")]),
            text("rubbish"),
        ]);
        let topology = Topology::read(&answer, &from);
        assert_eq!(topology.owner, Some(node("seed", 3)));
        assert_eq!(topology.nodes, [node("a", 1), node("b", 2), node("seed", 3)]);
        let mut nodes = Nodes::default();
        assert!(!nodes.is_cluster());
        nodes.learn(topology);
        assert!(nodes.is_cluster());
        let candidates = nodes.candidates(&[from, node("a", 1)]);
        assert_eq!(candidates, [node("seed", 3), node("a", 1), node("b", 2), node("seed", 7000)]);
        assert_eq!(Topology::read(&Value::Nil, &node("x", 1)), Topology { owner: None, nodes: Vec::new() });
    }

    #[test]
    fn addresses_in_redirections_are_read() {
        let from = node("here", 1);
        assert_eq!(address_in("10.0.0.1:7001", &from), Some(node("10.0.0.1", 7001)));
        assert_eq!(address_in(":7001", &from), Some(node("here", 7001)));
        assert_eq!(address_in("fd00::1:7001", &from), Some(node("fd00::1", 7001)));
        assert_eq!(address_in("[fd00::1]:7001", &from), Some(node("fd00::1", 7001)));
        for broken in ["", "host", "host:", "host:0", "host:99999"] {
            assert_eq!(address_in(broken, &from), None, "{broken}");
        }
    }
}
