//! A task of a run that failed is given new attempts, and the run goes on in this boot.

use super::{Write, adopt_run, apply};
use crate::rules;
use crate::sqlite::failure::Failure;
use crate::sqlite::rows;
use crate::types::RunSnapshot;
use mnemosyne_core::advance::View;
use mnemosyne_core::{Budget, retry_task as decide};

pub(crate) fn retry_task(
    write: &Write<'_>,
    id: &str,
    task: &str,
    note: Option<&str>,
    budget: Option<Budget>,
) -> Result<RunSnapshot, Failure> {
    let before = rows::run(write.connection, id)?.ok_or_else(|| rules::no_such_run(id))?;
    adopt_run::refuse_living(write, &before)?;
    let run = rules::taken_over(before.clone(), write.boot, budget);
    let advance = apply::with_view(write, Some(id), |view| decide(View { run: &run, ..view }, task, note))??;
    apply::apply(write, Some(id), None, advance)?;
    adopt_run::free(write, &before, budget)
}
