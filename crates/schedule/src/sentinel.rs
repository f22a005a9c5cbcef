//! Asks the sentinels for the address of the master.
//!
//! All are asked at once, and a majority of answers is enough, so that one that hangs delays nothing. Of different answers
//! the one with the highest configuration epoch is the newest: a sentinel cut off from the others still names the former
//! master.

use futures::{StreamExt as _, stream::FuturesUnordered};
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, RedisError, ServerErrorKind, aio::MultiplexedConnection,
};

use crate::error::{ErrorClass, ScheduleError};

/// Host and port.
pub(crate) type Address = (String, u16);

/// One sentinel: its address for messages, and how to connect.
pub(crate) struct Sentinel {
    pub(crate) address: String,
    pub(crate) client: Client,
}

struct Answer {
    /// `None` if the sentinel does not know the master.
    address: Option<Address>,
    epoch: u64,
}

/// The address of the master.
///
/// # Errors
/// When no sentinel names one. The refusal of a sentinel is preferred to one that can't be reached.
pub(crate) async fn master_address(
    operation: &'static str,
    sentinels: Vec<Sentinel>,
    master: &str,
    config: &AsyncConnectionConfig,
) -> Result<Address, ScheduleError> {
    let majority = sentinels.len() / 2 + 1;
    let mut answers: FuturesUnordered<_> = sentinels
        .into_iter()
        .map(|sentinel| async move {
            ask(&sentinel.client, master, config).await.map_err(|error| {
                let error = ScheduleError::new(operation, &error);
                let message = match error.class {
                    ErrorClass::Credentials => {
                        format!("sentinel {} refuses user or password: {}", sentinel.address, error.message)
                    }
                    _ => format!("sentinel {}: {}", sentinel.address, error.message),
                };
                ScheduleError { message, ..error }
            })
        })
        .collect();
    let mut newest: Option<(u64, Address)> = None;
    let mut refusal: Option<ScheduleError> = None;
    let (mut answered, mut unknown) = (0, 0);
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(Answer { address: Some(address), epoch }) => {
                answered += 1;
                if newest.as_ref().is_none_or(|(highest, _)| epoch > *highest) {
                    newest = Some((epoch, address));
                }
            }
            Ok(Answer { address: None, .. }) => {
                answered += 1;
                unknown += 1;
            }
            Err(error) => {
                if refusal.as_ref().is_none_or(|worst| worst.class == ErrorClass::Unavailable) {
                    refusal = Some(error);
                }
            }
        }
        if answered >= majority && newest.is_some() {
            break;
        }
    }
    match (newest, refusal) {
        (Some((_, address)), _) => Ok(address),
        (None, Some(error)) if unknown == 0 => Err(error),
        (None, _) => Err(ScheduleError {
            operation,
            class: ErrorClass::Unavailable,
            message: format!("no sentinel knows a master with the name {master:?}"),
        }),
    }
}

async fn ask(client: &Client, master: &str, config: &AsyncConnectionConfig) -> Result<Answer, RedisError> {
    let mut connection = client.get_multiplexed_async_connection_with_config(config).await?;
    let mut cmd = redis::cmd("SENTINEL");
    cmd.arg("get-master-addr-by-name").arg(master);
    let address: Option<Address> = cmd.query_async(&mut connection).await?;
    let epoch = match address {
        Some(_) => epoch(&mut connection, master).await?,
        None => 0,
    };
    Ok(Answer { address, epoch })
}

/// The configuration epoch; 0 if the sentinel refuses to return it, as access lists for clients often allow the address only.
async fn epoch(connection: &mut MultiplexedConnection, master: &str) -> Result<u64, RedisError> {
    let mut cmd = redis::cmd("SENTINEL");
    cmd.arg("master").arg(master);
    match cmd.query_async::<Vec<String>>(connection).await {
        Ok(fields) => Ok(fields
            .chunks_exact(2)
            .find(|field| field[0] == "config-epoch")
            .and_then(|field| field[1].parse().ok())
            .unwrap_or(0)),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::Server(ServerErrorKind::NoPerm | ServerErrorKind::ResponseError)
            ) =>
        {
            Ok(0)
        }
        Err(error) => Err(error),
    }
}
