//! A lease is extended, never shortened.

use super::{Write, claims, spending};
use crate::sqlite::failure::Failure;
use rusqlite::params;

pub(crate) fn renew(write: &Write<'_>, item: &str, epoch: u64, lease_ms: i64) -> Result<(), Failure> {
    let (row, holder) = claims::claimed(write, item, epoch)?;
    write.execute(
        "UPDATE items SET lease_until = max(lease_until, ?2) WHERE id = ?1",
        params![item, write.now.saturating_add(lease_ms)],
    )?;
    // A sign of life: after a crash, time is counted up to here.
    spending::charge(write, &row.item, &holder.agent, None, &[])
}
