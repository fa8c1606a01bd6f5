//! Commands from other processes: posted by anybody, taken once, by the boot that owns the run.

use super::Write;
use crate::rules;
use crate::sqlite::failure::Failure;
use crate::sqlite::rows;
use crate::types::NewCommand;
use rusqlite::params;

pub(crate) fn post_command(write: &Write<'_>, command: &NewCommand) -> Result<(), Failure> {
    if rows::run(write.connection, &command.run)?.is_none() {
        return Err(rules::no_such_run(&command.run).into());
    }
    write.execute(
        "INSERT INTO commands (run, kind, reason, posted_at) VALUES (?1, ?2, ?3, ?4)",
        params![command.run, command.kind, command.reason, write.now],
    )?;
    Ok(())
}

pub(crate) fn take_commands(write: &Write<'_>) -> Result<Vec<NewCommand>, Failure> {
    let mut open = write.connection.prepare_cached(
        "SELECT number, run, kind, reason FROM commands
         WHERE taken_by IS NULL AND run IN (SELECT id FROM runs WHERE boot = ?1) ORDER BY number",
    )?;
    let found = open.query_map([write.boot], |row| {
        let number: i64 = row.get(0)?;
        Ok((number, NewCommand { run: row.get(1)?, kind: row.get(2)?, reason: row.get(3)? }))
    })?;
    let found = found.collect::<rusqlite::Result<Vec<_>>>()?;
    let mut commands = Vec::new();
    for (number, command) in found {
        write.execute("UPDATE commands SET taken_by = ?2 WHERE number = ?1", params![number, write.boot])?;
        commands.push(command);
    }
    Ok(commands)
}
