//! A user's own item is cancelled, and what waits for it.

use super::{Write, claims, dependents};
use crate::rules;
use crate::sqlite::failure::Failure;
use crate::sqlite::rows;
use mnemosyne_core::ItemState;

pub(crate) fn cancel_item(write: &Write<'_>, id: &str, reason: &str) -> Result<(), Failure> {
    let row = rows::item(write.connection, id)?.ok_or_else(|| rules::no_such_item(id))?;
    if let Some(run) = &row.item.run {
        return Err(rules::item_of_a_run(id, run).into());
    }
    if row.item.state.is_terminal() {
        return Ok(());
    }
    claims::cancel(write, id, reason)?;
    dependents::settle(write, id, ItemState::Cancelled)
}
