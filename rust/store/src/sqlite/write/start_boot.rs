//! A boot begins: it writes its process id, and takes back what dead boots held.

use super::{Write, take_back};
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
    take_back(write)?;
    Ok(())
}
