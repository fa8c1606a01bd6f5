//! A lease is extended, never shortened.

use super::{Write, claims};
use crate::sqlite::failure::Failure;
use rusqlite::params;

pub(crate) fn renew(write: &Write<'_>, item: &str, epoch: u64, lease_ms: i64) -> Result<(), Failure> {
    let renewed = write.execute(
        "UPDATE items SET lease_until = max(lease_until, ?3) WHERE id = ?1 AND epoch = ?2 AND state = 'running'",
        params![item, epoch, write.now.saturating_add(lease_ms)],
    )?;
    if renewed == 0 {
        // Says why not.
        claims::claimed(write, item, epoch)?;
    }
    Ok(())
}
