//! The same key gives the same answer, for ever.

use super::Write;
use crate::sqlite::failure::Failure;
use rusqlite::{OptionalExtension, params};

/// What was stored under this key.
pub(crate) fn known(write: &Write<'_>, scope: &str, key: Option<&str>) -> Result<Option<String>, Failure> {
    let Some(key) = key else { return Ok(None) };
    let mut statement =
        write.connection.prepare_cached("SELECT id FROM idempotency_keys WHERE scope = ?1 AND key = ?2")?;
    Ok(statement.query_row([scope, key], |row| row.get(0)).optional()?)
}

/// Stores what the key stands for.
pub(crate) fn remember(write: &Write<'_>, scope: &str, key: Option<&str>, id: &str) -> Result<(), Failure> {
    if let Some(key) = key {
        write.execute("INSERT INTO idempotency_keys (scope, key, id) VALUES (?1, ?2, ?3)", params![scope, key, id])?;
    }
    Ok(())
}
