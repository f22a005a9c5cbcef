//! Raising the TTLs of scheduled values, page by page.

use std::time::Duration;

use redis::Value;

use crate::{
    error::ScheduleError,
    reply::{array, bulk, int, millis, seconds},
    schedule::Schedule,
    scripts,
};

/// Result of protecting one page of the schedule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProtectPage {
    /// Cursor of the next page; `None` after the last one.
    pub next: Option<Vec<u8>>,
    /// Members in the page.
    pub seen: u64,
    /// Values whose TTL was raised.
    pub raised: u64,
    /// Members without a value.
    pub absent: u64,
    /// Smallest remaining TTL in this page, after raising.
    pub shortest: Option<Duration>,
}

/// Where a page of recently scheduled members begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecentFrom {
    score: Vec<u8>,
    /// After this member; empty = with the first one of that score.
    member: Vec<u8>,
}

impl RecentFrom {
    /// With members scheduled at this Redis time.
    #[must_use]
    pub fn time(time: f64) -> Self {
        Self { score: format!("{time:.6}").into_bytes(), member: Vec::new() }
    }

    fn nothing() -> Self {
        Self { score: b"-".to_vec(), member: Vec::new() }
    }
}

/// Result of protecting one page of recently scheduled members.
#[derive(Debug, Clone, PartialEq)]
pub struct RecentPage {
    /// Redis time of the call, in seconds.
    pub now: f64,
    /// Values whose TTL was raised.
    pub raised: u64,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<RecentFrom>,
}

impl Schedule {
    /// Protects one page of all scheduled members; begin with `None`.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn protect_page(&self, from: Option<&[u8]>) -> Result<ProtectPage, ScheduleError> {
        const OPERATION: &str = "protect";
        let mut cmd = scripts::PROTECT.call(1);
        cmd.arg(self.space().schedule())
            .arg(from.unwrap_or(b"0"))
            .arg(500)
            .arg(millis(self.options().protect_floor))
            .arg(self.space().prefix());
        let value = scripts::PROTECT.run(self.link(), &cmd).await?;
        let parts = array(OPERATION, &value, 5)?;
        let cursor = bulk(OPERATION, &parts[0])?;
        let shortest = match &parts[4] {
            Value::Int(left) => u64::try_from(*left).ok().map(Duration::from_millis),
            _ => None,
        };
        Ok(ProtectPage {
            next: (cursor != b"0").then(|| cursor.to_vec()),
            seen: int(OPERATION, &parts[1])?,
            raised: int(OPERATION, &parts[2])?,
            absent: int(OPERATION, &parts[3])?,
            shortest,
        })
    }

    /// Protects members scheduled since this Redis time; `None` only reads the clock. Returns the Redis time for the next
    /// call, and how many TTLs were raised.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn protect_since(&self, from: Option<f64>) -> Result<(f64, u64), ScheduleError> {
        let mut begin = from.map_or_else(RecentFrom::nothing, RecentFrom::time);
        let (mut begun, mut raised) = (None, 0);
        loop {
            let page = self.protect_recent_page(&begin).await?;
            let begun = *begun.get_or_insert(page.now);
            raised += page.raised;
            match page.next {
                Some(next) => begin = next,
                None => return Ok((begun, raised)),
            }
        }
    }

    /// One page of [`Schedule::protect_since`].
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn protect_recent_page(&self, from: &RecentFrom) -> Result<RecentPage, ScheduleError> {
        const OPERATION: &str = "protect recent";
        const PAGE: u64 = 500;
        let mut cmd = scripts::PROTECT_RECENT.call(1);
        cmd.arg(self.space().schedule())
            .arg(&from.score)
            .arg(&from.member)
            .arg(PAGE)
            .arg(millis(self.options().protect_floor))
            .arg(self.space().prefix());
        let value = scripts::PROTECT_RECENT.run(self.link(), &cmd).await?;
        let parts = array(OPERATION, &value, 5)?;
        let next = || {
            let (score, member) = (bulk(OPERATION, &parts[3])?, bulk(OPERATION, &parts[4])?);
            Ok(RecentFrom { score: score.to_vec(), member: member.to_vec() })
        };
        Ok(RecentPage {
            now: seconds(OPERATION, &parts[0])?,
            raised: int(OPERATION, &parts[2])?,
            next: if int(OPERATION, &parts[1])? == 0 { None } else { Some(next()?) },
        })
    }
}
