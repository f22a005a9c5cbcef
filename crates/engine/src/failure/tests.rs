use super::*;

/// One row, in words: reason, pace, and what is set of `refetch`, `ping` and `skip`.
type Row = (&'static str, Pace, &'static str);

fn row(cause: Cause) -> Row {
    let found = reaction(cause);
    let flags = match (found.settings, found.next_try, found.obstacle) {
        (Settings::Keep, NextTry::Claim, Obstacle::Failure) => "",
        (Settings::Keep, NextTry::Ping, Obstacle::Failure) => "ping",
        (Settings::Refetch, NextTry::Claim, Obstacle::Failure) => "refetch",
        (Settings::Refetch, NextTry::Ping, Obstacle::Failure) => "refetch ping",
        (Settings::Refetch, NextTry::Ping, Obstacle::Skipped) => "refetch ping skip",
        other => panic!("not in the table: {other:?}"),
    };
    (found.reason.as_str(), found.pace(), flags)
}

#[test]
fn every_class_of_postgres_has_its_row() {
    use Pace::{Long, Short};
    let expected = |class| match class {
        PostgresClass::Connection => ("postgres_connection", Short, "ping"),
        PostgresClass::Dns => ("postgres_dns", Short, "refetch ping"),
        PostgresClass::TooManyConnections => ("postgres_too_many_connections", Short, "ping"),
        PostgresClass::Timeout => ("postgres_timeout", Short, "ping"),
        PostgresClass::ReadOnly => ("postgres_read_only", Short, "refetch"),
        PostgresClass::Contention => ("postgres_contention", Short, ""),
        PostgresClass::Credentials => ("postgres_credentials", Long, "refetch ping"),
        PostgresClass::DatabaseMissing => ("postgres_database_missing", Long, "refetch ping"),
        PostgresClass::NotProvisioned => ("postgres_not_provisioned", Long, "refetch"),
        PostgresClass::Permission => ("postgres_permission", Long, "refetch"),
        PostgresClass::RowSecurity => ("postgres_row_security", Long, "refetch"),
        PostgresClass::NoVisibleRows => ("postgres_no_visible_rows", Long, "refetch"),
        PostgresClass::RefusesEveryRow => ("postgres_refuses_every_row", Long, ""),
        PostgresClass::Resources => ("postgres_resources", Short, ""),
        PostgresClass::Tls => ("postgres_tls", Long, "refetch ping"),
        PostgresClass::Configuration => ("postgres_configuration", Long, "refetch ping"),
        PostgresClass::PoolerUnsafe => ("postgres_pooler_unsafe", Long, "refetch"),
        PostgresClass::Closed => ("postgres_connection", Short, ""),
        PostgresClass::Refused | PostgresClass::Internal => ("postgres_internal", Long, ""),
    };
    for class in PostgresClass::ALL {
        assert_eq!(row(Cause::Postgres(class)), expected(class));
    }
    assert_eq!(row(Cause::FlushDeadline), ("postgres_timeout", Short, "ping"));
}

#[test]
fn every_class_of_redis_has_its_row_under_its_own_name() {
    for class in RedisClass::ALL {
        let pace = match class {
            RedisClass::Unavailable
            | RedisClass::Loading
            | RedisClass::Busy
            | RedisClass::ReadOnly
            | RedisClass::NoReplicas
            | RedisClass::Misconf
            | RedisClass::OutOfMemory
            | RedisClass::Cluster => Pace::Short,
            RedisClass::Credentials
            | RedisClass::Permission
            | RedisClass::UndeclaredKeys
            | RedisClass::WrongType
            | RedisClass::Unexpected => Pace::Long,
        };
        assert_eq!(row(Cause::Redis(class)), (class.as_str(), pace, ""));
        assert_eq!(class.is_transient(), pace == Pace::Short);
        let side = Side::of_claim(class);
        assert_eq!(side == Side::Claim, class.is_refusal());
        assert_eq!(side.claims(), Claims::Lapse, "Redis takes nothing back that it refuses to give");
    }
}

#[test]
fn what_the_directory_refuses_passes_the_tenant_over() {
    use Pace::{Long, Short};
    let all = "refetch ping skip";
    let rows = [
        (DirectoryClass::NotFound, "tenant_not_found", Long),
        (DirectoryClass::Suspended, "tenant_suspended", Long),
        (DirectoryClass::Purged, "tenant_purged", Long),
        (DirectoryClass::Forbidden, "tenant_forbidden", Long),
        (DirectoryClass::Malformed, "tenant_config_malformed", Long),
        (DirectoryClass::Unauthorized, "tenant_service_unauthorized", Long),
        (DirectoryClass::Unavailable, "tenant_service_unavailable", Short),
        (DirectoryClass::BreakerOpen, "tenant_service_unavailable", Short),
    ];
    assert_eq!(rows.len(), DirectoryClass::ALL.len());
    for (class, reason, pace) in rows {
        assert_eq!(row(Cause::Directory(class)), (reason, pace, all));
    }
    assert_eq!(row(Cause::Schema), ("tenant_config_malformed", Long, all));
    assert_eq!(row(Cause::WorkerStopping), ("stopping", Short, all));
}

#[test]
fn a_ping_proves_nothing_where_the_server_answers_and_refuses() {
    for class in PostgresClass::ALL {
        let refuses = matches!(
            class,
            PostgresClass::ReadOnly
                | PostgresClass::NotProvisioned
                | PostgresClass::Permission
                | PostgresClass::RowSecurity
                | PostgresClass::NoVisibleRows
                | PostgresClass::RefusesEveryRow
                | PostgresClass::Resources
                | PostgresClass::PoolerUnsafe
        );
        if refuses {
            assert_eq!(reaction(Cause::Postgres(class)).next_try, NextTry::Claim, "{class}");
        }
    }
}
