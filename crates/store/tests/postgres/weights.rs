//! A tenant of more weight is served before one that has waited for longer.

use balance_sync_engine::fair::Weight;
use balance_sync_sandbox::eventually;
use balance_sync_store::{ConnectionBudget, Database, DatabaseSpec, Session};
use tokio::sync::mpsc;

use crate::support::{PATIENCE, Tenant};

/// Three tenants of one server: one that holds what there is, and two that wait for it.
struct Contended {
    budget: ConnectionBudget,
    holder: Database,
    light: Database,
    heavy: Database,
}

impl Contended {
    async fn new(name: &str, connections: u32) -> Contended {
        let budget = ConnectionBudget::new(connections);
        let mut databases = Vec::new();
        for (role, weight) in [("holder", 1), ("light", 1), ("heavy", 4)] {
            let tenant = Tenant::new(&format!("{name}_{role}")).await;
            let weight = Weight::new(weight).unwrap();
            let spec = DatabaseSpec { weight, max_connections: connections.min(16), ..tenant.spec() };
            databases.push(Database::open(spec, budget.clone()).unwrap());
        }
        let [holder, light, heavy] = databases.try_into().unwrap();
        Contended { budget, holder, light, heavy }
    }

    /// First the light one waits, then the heavy one; then `held` is given up. Returns who is served in which order.
    async fn served_after(self, held: Vec<Session>) -> Vec<&'static str> {
        let (served, mut order) = mpsc::unbounded_channel();
        for (waiting, who, database) in [(1, "light", &self.light), (2, "heavy", &self.heavy)] {
            let (database, served) = (database.clone(), served.clone());
            tokio::spawn(async move {
                let session = database.connect().await.unwrap();
                served.send(who).unwrap();
                drop(session);
            });
            eventually(PATIENCE, "another one waits", || async {
                self.budget.servers()[0].waiting == waiting
            })
            .await
            .unwrap();
        }
        drop(held);
        vec![order.recv().await.unwrap(), order.recv().await.unwrap()]
    }
}

#[tokio::test]
async fn for_a_connection() {
    let contended = Contended::new("weighed_connections", 1).await;
    let held = contended.holder.connect().await.unwrap();
    assert_eq!(contended.served_after(vec![held]).await, ["heavy", "light"]);
}

#[tokio::test]
async fn for_a_turn_to_write() {
    let contended = Contended::new("weighed_turns", 20).await;
    let mut held = Vec::new();
    for _ in 0..16 {
        held.push(contended.holder.connect().await.unwrap());
    }
    let last = held.split_off(15);
    let order = contended.served_after(last).await;
    assert_eq!(order, ["heavy", "light"]);
    drop(held);
}
