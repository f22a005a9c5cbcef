//! What the tests share: one private Redis, one tenant per test.

use balance_sync_domain::{KeySpace, TenantId};
use balance_sync_sandbox::{RedisOptions, RedisServer};
use tokio::sync::OnceCell;

/// The binary's Redis. It ends with the process.
pub(crate) async fn server() -> &'static RedisServer {
    static SERVER: OnceCell<RedisServer> = OnceCell::const_new();
    SERVER.get_or_init(|| async { RedisServer::start(RedisOptions::default()).await.unwrap() }).await
}

/// The keys of a tenant.
pub(crate) fn space_of(tenant: &str) -> KeySpace {
    KeySpace::tenant(&TenantId::parse(tenant).unwrap())
}
