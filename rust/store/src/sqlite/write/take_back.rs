//! What dead boots held of the items that belong to no run is ready again, without waiting for the leases (those of runs are
//! taken back by whoever adopts the run).

use super::{Write, claims};
use crate::sqlite::failure::Failure;
use crate::sqlite::rows;

/// How many items.
pub(crate) fn take_back(write: &Write<'_>) -> Result<u64, Failure> {
    let mut taken = 0;
    for boot in rows::holders_without_a_run(write.connection)? {
        if write.is_dead(&boot) {
            let held = "SELECT id FROM items WHERE state = 'running' AND run IS NULL AND boot = ?1 ORDER BY +arrival";
            for item in rows::texts(write.connection, held, [&boot])? {
                claims::release_of_dead_boot(write, &item)?;
                taken += 1;
            }
        }
    }
    Ok(taken)
}
