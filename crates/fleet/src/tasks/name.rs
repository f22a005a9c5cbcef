//! The names of background tasks.

use std::fmt;

/// The background tasks of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TaskName {
    /// Reads the log of operators' actions (`balance_sync_view`).
    ActionsFollower,
    /// Follows which tenants are served ([`crate::lifecycle`]).
    RolloutWatch,
    /// Keeps the worker registered, and its share up to date ([`crate::lifecycle::partition`]).
    Partition,
    /// Keeps to the connections that the fleet shares ([`crate::lifecycle`]).
    ConnectionShares,
    /// Looks whether the worker's threads move ([`crate::lifecycle::thread_health::watch`]).
    ThreadWatch,
    /// Counts up for as long as a thread moves ([`crate::lifecycle::thread_health::Pulse::beat`]).
    ThreadPulse,
    /// Looks at schedules for idle collectors ([`crate::backends`]).
    Prober,
    /// Follows what Redis announces of idle schedules ([`crate::backends`]).
    Tracker,
    /// Looks at schedules that are another worker's first ([`crate::backends`]).
    Standby,
    /// Looks at what waits in the schedules (`balance_sync_view`).
    Sampler,
    /// Looks at the ledger's own queues (`balance_sync_view`).
    QueueWatch,
    /// Looks at what the ledger has given up replaying (`balance_sync_view`).
    LedgerQuarantineWatch,
    /// Publishes what this worker knows (`balance_sync_view`).
    Publisher,
    /// Records what the monthly report is made of (`balance_sync_view`).
    Recorder,
    /// Records what happens to the tenants of this worker (`balance_sync_view`).
    Timeline,
    /// Pushes the metrics by OTLP (`balance_sync_cli::telemetry`).
    MetricsPush,
    /// Listens to the tenant service's events ([`crate::lifecycle::events`]).
    TenantEvents,
    /// Looks whether Redis may evict.
    EvictionWatch,
    /// Reads credentials of Redis again, and asks sentinels for the master (`crate::lifecycle::redis_watch`).
    RedisWatch,
    /// Compares rows after a failover of Postgres ([`crate::backends`]).
    FailoverCheck,
    /// Looks whether Redis has lost data ([`crate::backends`]).
    VanishWatch,
    /// Compares and lists what Redis has lost ([`crate::backends`]).
    VanishRepair,
    /// Shares what is known of the ledger's own worker, and finds what that has dropped ([`crate::backends`]).
    NeighbourWatch,
    /// Looks for balances in schedules that tenants seldom have ([`crate::backends`]).
    LegacyWatch,
    /// Reads the directory of Redis servers, and looks at the others (`balance_sync_view`).
    RedisDirectory,
    /// Looks at what others write, for a worker that only looks ([`crate::backends`]).
    ShadowWatch,
    /// Closes idle connections to Postgres (`balance_sync_store::budget`).
    ConnectionSweeper,
    /// One poll of the tenant list.
    TenantPoll,
    /// One look-up of a tenant's settings.
    SettingsLookup,
    /// One operator's action, carried out.
    Action,
    /// Closing the connections of a database.
    ConnectionClose,
    /// One look-up of the address of a Postgres server.
    HostLookup,
    /// One stream of events to a client of the admin interface.
    EventStream,
    /// The listener of the admin interface.
    AdminServer,
    /// A tenant's collector; the supervisor starts it again ([`crate::pipeline`]).
    Collector,
}

impl TaskName {
    /// All of them.
    pub const ALL: [Self; 35] = [
        Self::ActionsFollower,
        Self::RolloutWatch,
        Self::Partition,
        Self::ConnectionShares,
        Self::ThreadWatch,
        Self::ThreadPulse,
        Self::Prober,
        Self::Tracker,
        Self::Standby,
        Self::Sampler,
        Self::QueueWatch,
        Self::LedgerQuarantineWatch,
        Self::Publisher,
        Self::Recorder,
        Self::Timeline,
        Self::MetricsPush,
        Self::TenantEvents,
        Self::EvictionWatch,
        Self::RedisWatch,
        Self::FailoverCheck,
        Self::VanishWatch,
        Self::VanishRepair,
        Self::NeighbourWatch,
        Self::LegacyWatch,
        Self::RedisDirectory,
        Self::ShadowWatch,
        Self::ConnectionSweeper,
        Self::TenantPoll,
        Self::SettingsLookup,
        Self::Action,
        Self::ConnectionClose,
        Self::HostLookup,
        Self::EventStream,
        Self::AdminServer,
        Self::Collector,
    ];

    /// The name in logs, metrics and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ActionsFollower => "actions_follower",
            Self::RolloutWatch => "rollout_watch",
            Self::Partition => "partition",
            Self::ConnectionShares => "connection_shares",
            Self::ThreadWatch => "thread_watch",
            Self::ThreadPulse => "thread_pulse",
            Self::Prober => "prober",
            Self::Tracker => "tracker",
            Self::Standby => "standby",
            Self::Sampler => "sampler",
            Self::QueueWatch => "queue_watch",
            Self::LedgerQuarantineWatch => "ledger_quarantine_watch",
            Self::Publisher => "publisher",
            Self::Recorder => "recorder",
            Self::Timeline => "timeline",
            Self::MetricsPush => "metrics_push",
            Self::TenantEvents => "tenant_events",
            Self::EvictionWatch => "eviction_watch",
            Self::RedisWatch => "redis_watch",
            Self::FailoverCheck => "failover_check",
            Self::VanishWatch => "vanish_watch",
            Self::VanishRepair => "vanish_repair",
            Self::NeighbourWatch => "neighbour_watch",
            Self::LegacyWatch => "legacy_watch",
            Self::RedisDirectory => "redis_directory",
            Self::ShadowWatch => "shadow_watch",
            Self::ConnectionSweeper => "connection_sweeper",
            Self::TenantPoll => "tenant_poll",
            Self::SettingsLookup => "settings_lookup",
            Self::Action => "action",
            Self::ConnectionClose => "connection_close",
            Self::HostLookup => "host_lookup",
            Self::EventStream => "event_stream",
            Self::AdminServer => "admin_server",
            Self::Collector => "collector",
        }
    }

    /// By name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|task| task.name() == name)
    }

    /// Whether the worker serves its tenants wrongly or not at all without it, so that a restart of the process is worth
    /// it. The others only show less, or have a caller that does without them.
    #[must_use]
    pub fn is_essential(self) -> bool {
        matches!(
            self,
            Self::ActionsFollower
                | Self::RolloutWatch
                | Self::Partition
                | Self::ConnectionShares
                | Self::ThreadWatch
                | Self::ThreadPulse
        )
    }
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
