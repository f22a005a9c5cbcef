//! The replication history of a Redis server, by which a replica that has taken over is known although the address, and perhaps what
//! is read of the process, stays the same.
//!
//! Each server has the ID of its history. A replica has that of its master; when it is promoted it begins a history of its own, and
//! remembers the former one and how far it had followed it. A server also takes a new ID without being another one: when its first
//! replica comes, and an hour after the last one has left. Then it remembers no former history.

/// What a server says of its history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Its ID.
    pub id: String,
    /// The history that it followed before it was promoted.
    pub former: Option<String>,
    /// How much has been written in this history, in bytes.
    pub offset: u64,
    /// At which offset of the former history it was promoted.
    pub promoted_at: u64,
}

/// A replica has taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Promotion {
    /// Bytes at least of what the former master had written and the replica has never received.
    pub(super) lacks: u64,
}

impl History {
    /// Whether it is that of a replica that took over from the server that had this history. Others may have done so in between.
    pub(super) fn continues(&self, before: &Self) -> Option<Promotion> {
        if self.id == before.id {
            return None;
        }
        let former = self.former.as_ref()?;
        // The replica begins with the byte at its offset, so it has those before it.
        let received = self.promoted_at.saturating_sub(1);
        let lacks = if *former == before.id { before.offset.saturating_sub(received) } else { 0 };
        Some(Promotion { lacks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(id: &str, former: Option<&str>, offset: u64, promoted_at: u64) -> History {
        History { id: id.to_owned(), former: former.map(str::to_owned), offset, promoted_at }
    }

    #[test]
    fn a_promoted_replica_is_told_from_a_new_id_of_the_same_server() {
        let before = history("a", None, 1_000, 0);
        assert_eq!(history("a", None, 2_000, 0).continues(&before), None);
        assert_eq!(history("b", None, 1_000, 0).continues(&before), None, "its first replica has come");
        let promoted = |lacks| Some(Promotion { lacks });
        assert_eq!(history("b", Some("a"), 1_500, 1_001).continues(&before), promoted(0));
        assert_eq!(history("b", Some("a"), 1_500, 1_200).continues(&before), promoted(0));
        assert_eq!(history("b", Some("a"), 1_500, 901).continues(&before), promoted(100));
        assert_eq!(history("c", Some("b"), 1_500, 1).continues(&before), promoted(0), "two in between");
    }
}
