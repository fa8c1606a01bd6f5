//! A run is cancelled, with all its items.

use super::{Write, apply, claims, spending};
use crate::rules;
use crate::sqlite::failure::Failure;
use crate::sqlite::rows;
use mnemosyne_core::advance;

pub(crate) fn cancel_run(write: &Write<'_>, id: &str, reason: &str) -> Result<(), Failure> {
    let run = rows::run(write.connection, id)?.ok_or_else(|| rules::no_such_run(id))?;
    if run.state.is_terminal() {
        return Ok(());
    }
    if run.boot.as_deref().is_some_and(|boot| write.is_dead(boot)) {
        spending::forget_time(write, id)?;
    }
    let open = "SELECT id FROM items WHERE run = ?1 AND state IN ('ready', 'running') ORDER BY arrival";
    for item in rows::texts(write.connection, open, [id])? {
        claims::cancel(write, &item, reason)?;
    }
    let advance = apply::with_view(write, Some(id), |view| advance::cancel_run(view, reason))?;
    apply::apply(write, Some(id), None, advance)
}
