//! One live run per workspace: two would overwrite each other's files.

use super::Write;
use crate::rules;
use crate::sqlite::failure::Failure;
use crate::sqlite::rows;

pub(crate) fn refuse_busy(write: &Write<'_>, workspace: &str, but: &str) -> Result<(), Failure> {
    let mut statement = write.connection.prepare_cached(
        "SELECT id, boot FROM runs
         WHERE workspace = ?1 AND id <> ?2 AND boot IS NOT NULL AND state IN ('running', 'paused', 'waiting')
         ORDER BY arrival",
    )?;
    let mut rows = statement.query([workspace, but])?;
    while let Some(row) = rows.next()? {
        let (run, boot): (String, String) = (row.get(0)?, row.get(1)?);
        if !write.is_dead(&boot) {
            let pid = rows::pid_of(write.connection, &boot)?;
            return Err(rules::workspace_busy(workspace, &run, pid).into());
        }
    }
    Ok(())
}
