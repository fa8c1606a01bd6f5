//! A result is committed with all that follows from it (**DUR-2**, **ONCE-1**).

use super::{Write, apply, claims};
use crate::sqlite::failure::Failure;
use crate::types::Completion;
use mnemosyne_core::next_items;
use rusqlite::params;

pub(crate) fn complete(write: &Write<'_>, completion: Completion) -> Result<(), Failure> {
    let Completion { item: id, epoch, result, events } = completion;
    let (row, holder) = claims::claimed(write, &id, epoch)?;
    let item = row.item;
    let advance = apply::with_view(write, item.run.as_deref(), |view| next_items(view, &item, &result))?;
    write.execute(
        "UPDATE items SET result = ?2, model_failures = 0 WHERE id = ?1",
        params![id, serde_json::to_string(&result)?],
    )?;
    apply::finish(write, &item, &holder, "completed", events, advance)
}
