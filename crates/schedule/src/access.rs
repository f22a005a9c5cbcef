//! Calls for the keys of many tenants, to some of which the worker's user may have no right.
//!
//! For one such key Redis refuses the whole call, so that a wrong ACL entry for one tenant would blind the worker to all the
//! tenants it looks at together. A refused call is therefore split until the keys without access stand alone; the others get
//! their answers. This costs about two small calls per halving and key without access.

use crate::error::ScheduleError;

/// What remains to be asked: parts of a list, in the order of the list.
pub(crate) struct Parts<'a, T> {
    /// The next one last.
    open: Vec<&'a [T]>,
}

impl<'a, T> Parts<'a, T> {
    pub(crate) fn of(items: &'a [T]) -> Self {
        Self { open: if items.is_empty() { Vec::new() } else { vec![items] } }
    }

    pub(crate) fn next(&mut self) -> Option<&'a [T]> {
        self.open.pop()
    }

    /// Handles the error of a part: queues its halves, or returns true if it is a single item without access.
    ///
    /// # Errors
    /// The same error, unless it reports a missing right to a key.
    pub(crate) fn is_denied(&mut self, part: &'a [T], error: ScheduleError) -> Result<bool, ScheduleError> {
        if !error.is_denied_key() {
            return Err(error);
        }
        if part.len() == 1 {
            tracing::debug!(%error, "a key of one tenant can't be accessed");
            return Ok(true);
        }
        let (left, right) = part.split_at(part.len() / 2);
        self.open.extend([right, left]);
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ask(part: &[u32], denied: &[u32], calls: &mut usize) -> Result<Vec<u32>, ScheduleError> {
        *calls += 1;
        if part.iter().any(|item| denied.contains(item)) {
            return Err(ScheduleError::refused("test", "NOPERM No permissions to access a key"));
        }
        Ok(part.to_vec())
    }

    #[test]
    fn keys_without_access_stand_alone_and_the_others_are_answered_in_order() {
        let items: Vec<u32> = (0..250).collect();
        for (denied, most_calls) in [(vec![], 1), (vec![97], 17), (vec![0, 249], 31), (items.clone(), 499)] {
            let (mut calls, mut found) = (0, Vec::new());
            let mut parts = Parts::of(&items);
            while let Some(part) = parts.next() {
                match ask(part, &denied, &mut calls) {
                    Ok(answers) => found.extend(answers.into_iter().map(Some)),
                    Err(error) => {
                        if parts.is_denied(part, error).unwrap() {
                            found.push(None);
                        }
                    }
                }
            }
            let wanted: Vec<_> = items.iter().map(|item| (!denied.contains(item)).then_some(*item)).collect();
            assert_eq!(found, wanted);
            assert!(calls <= most_calls, "{calls} calls for {} without access", denied.len());
        }
    }

    #[test]
    fn other_errors_end_the_call() {
        let mut parts = Parts::of(&[1, 2]);
        let part = parts.next().unwrap();
        for text in
            ["NOPERM User w has no permissions to run the 'evalsha' command", "LOADING Redis is loading"]
        {
            assert!(parts.is_denied(part, ScheduleError::refused("test", text)).is_err(), "{text}");
        }
        assert!(parts.next().is_none());
    }
}
