//! A boot begins: it writes its process id, and takes back what dead boots held of the items that belong to no run
//! (those of runs are taken back by whoever adopts the run).

use super::{Write, claims};
use crate::sqlite::failure::Failure;
use crate::sqlite::rows;
use rusqlite::params;

pub(crate) fn start_boot(write: &Write<'_>) -> Result<(), Failure> {
    let pid = std::process::id();
    write
        .execute("INSERT INTO boots (id, pid, started_at) VALUES (?1, ?2, ?3)", params![write.boot, pid, write.now])?;
    // Whoever opened the file has looked whether it is sound; that their end was noticed is what the row says.
    for boot in rows::texts(write.connection, "SELECT id FROM boots WHERE ended_at IS NULL", [])? {
        if boot != write.boot && write.is_dead(&boot) {
            write.execute("UPDATE boots SET ended_at = ?2 WHERE id = ?1", params![boot, write.now])?;
        }
    }
    let boots = "SELECT DISTINCT boot FROM items WHERE state = 'running' AND run IS NULL";
    for boot in rows::texts(write.connection, boots, [])? {
        if write.is_dead(&boot) {
            let held = "SELECT id FROM items WHERE state = 'running' AND run IS NULL AND boot = ?1 ORDER BY arrival";
            for item in rows::texts(write.connection, held, [&boot])? {
                claims::release_of_dead_boot(write, &item)?;
            }
        }
    }
    Ok(())
}
