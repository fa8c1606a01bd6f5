//! An item ends for good without a result.

use super::apply::Outcome;
use super::{Write, apply, claims};
use crate::sqlite::failure::Failure;
use mnemosyne_core::{ItemState, NewEvent, Problem, item_dead};

pub(crate) fn give_up(
    write: &Write<'_>,
    id: &str,
    epoch: u64,
    problem: &Problem,
    events: &[NewEvent],
) -> Result<(), Failure> {
    let (row, holder) = claims::claimed(write, id, epoch)?;
    let item = row.item;
    let advance =
        apply::with_view(write, item.run.as_deref(), |view| item_dead(view, &item, ItemState::Failed, problem))?;
    apply::finish(write, &item, &holder, &Outcome::Problem(problem), events.to_vec(), advance)
}
