//! Tokens and money are set aside before they are spent (**BUDGET-1**).

use super::{Write, claims};
use crate::rules;
use crate::sqlite::failure::Failure;
use crate::sqlite::rows;
use crate::types::{Amount, Reserve};
use mnemosyne_core::{Budget, Item};
use rusqlite::params;

pub(crate) fn reserve(write: &Write<'_>, reserve: &Reserve) -> Result<String, Failure> {
    let (row, _) = claims::claimed(write, &reserve.item, reserve.epoch)?;
    set_aside(write, &row.item, reserve.amount, None)
}

/// Sets an amount aside for a step or for its own, if the run's budget allows it.
pub(crate) fn set_aside(
    write: &Write<'_>,
    item: &Item,
    amount: Amount,
    step: Option<(u32, u64)>,
) -> Result<String, Failure> {
    rules::check_amount(amount)?;
    if let Some(id) = &item.run
        && let Some(run) = rows::run(write.connection, id)?
        && run.budget != Budget::default()
    {
        let (used, held) = (rows::usage(write.connection, id)?, rows::held(write.connection, id)?);
        rules::check_budget(&run, &used, held, amount)?;
    }
    let (attempt, number) = step.unzip();
    write.execute(
        "INSERT INTO usage (run, item, attempt, step, tokens, usd, state) VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'open')",
        params![item.run, item.work.id, attempt, number, amount.tokens, amount.usd],
    )?;
    Ok(format!("u-{}", write.connection.last_insert_rowid()))
}
