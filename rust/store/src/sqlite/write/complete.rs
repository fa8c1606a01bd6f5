//! A result is committed with all that follows from it (**DUR-2**, **ONCE-1**).

use super::apply::Outcome;
use super::{Write, apply, claims};
use crate::sqlite::failure::Failure;
use crate::types::Completion;
use mnemosyne_core::next_items;

pub(crate) fn complete(write: &Write<'_>, completion: &Completion) -> Result<(), Failure> {
    let Completion { item: id, epoch, result, events } = completion;
    let (row, holder) = claims::claimed(write, id, *epoch)?;
    let item = row.item;
    let advance = apply::with_view(write, item.run.as_deref(), |view| next_items(view, &item, result))?;
    apply::finish(write, &item, &holder, &Outcome::Result(result), events.clone(), advance)
}
