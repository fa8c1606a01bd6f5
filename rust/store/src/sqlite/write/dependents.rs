//! An item ended: only the items that wait for it are touched. What waited for a success that will not come is cancelled,
//! for it would wait for ever.

use super::{Write, claims};
use crate::rules;
use crate::sqlite::failure::Failure;
use crate::sqlite::rows;
use mnemosyne_core::ItemState;

pub(crate) fn settle(write: &Write<'_>, id: &str, state: ItemState) -> Result<(), Failure> {
    // Nearly always nobody waits.
    let mut waits = write.connection.prepare_cached("SELECT 1 FROM item_dependencies WHERE dependency = ?1 LIMIT 1")?;
    if !waits.exists([id])? {
        return Ok(());
    }
    if state == ItemState::Done {
        let mut update = write.connection.prepare_cached(
            "UPDATE items SET open_dependencies = open_dependencies - 1
             WHERE id IN (SELECT item FROM item_dependencies WHERE dependency = ?1) RETURNING role",
        )?;
        let mut freed = update.query([id])?;
        while let Some(row) = freed.next()? {
            write.is_ready(rows::name(row, 0)?);
        }
        return Ok(());
    }
    // A list, not a recursion: a chain may be longer than a stack is deep.
    let mut ended = vec![(id.to_owned(), state)];
    while let Some((id, state)) = ended.pop() {
        let waiting = "SELECT item FROM item_dependencies JOIN items ON items.id = item
             WHERE dependency = ?1 AND state = 'ready' ORDER BY arrival";
        for dependent in rows::texts(write.connection, waiting, [&id])? {
            claims::cancel(write, &dependent, &rules::lost_dependency(&id, state))?;
            ended.push((dependent, ItemState::Cancelled));
        }
    }
    Ok(())
}
