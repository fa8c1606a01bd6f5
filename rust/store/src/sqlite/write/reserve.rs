//! Tokens and money are set aside before they are spent (**BUDGET-1**).

use super::{Write, claims, spending};
use crate::budget::{self, Level};
use crate::rules::Holder;
use crate::sqlite::failure::Failure;
use crate::sqlite::rows;
use crate::types::{Amount, Reserve};
use mnemosyne_core::{Budget, Item};
use rusqlite::params;

pub(crate) fn reserve(write: &Write<'_>, reserve: &Reserve) -> Result<String, Failure> {
    let (row, holder) = claims::claimed(write, &reserve.item, reserve.epoch)?;
    set_aside(write, &row.item, &holder, reserve.amount, None)
}

/// Sets an amount aside for a step or for its own, if the budget of its run, its task and its agent allows it.
pub(crate) fn set_aside(
    write: &Write<'_>,
    item: &Item,
    holder: &Holder,
    amount: Amount,
    step: Option<(u32, u64)>,
) -> Result<String, Failure> {
    budget::check_amount(amount)?;
    if let Some(run) = &item.run {
        let levels = Level::of(item, &holder.agent);
        let budget = rows::budget(write.connection, run)?;
        if budget != Budget::default() {
            let accounts = spending::accounts(write, run, levels.clone())?;
            budget::check(run, &budget, &accounts, amount, write.now)?;
        }
        spending::change(write, run, &levels, |account| {
            account.count_time(write.now);
            account.calls += 1;
        })?;
    }
    let (attempt, number) = step.unzip();
    write.execute(
        "INSERT INTO usage (run, task, agent, item, attempt, step, tokens, usd, state)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'open')",
        params![item.run, item.task, holder.agent, item.work.id, attempt, number, amount.tokens, amount.usd],
    )?;
    Ok(format!("u-{}", write.connection.last_insert_rowid()))
}
