//! A reservation becomes what was really used.

use super::{Write, claims};
use crate::rules;
use crate::sqlite::failure::Failure;
use mnemosyne_core::{Item, Usage};
use rusqlite::params;

pub(crate) fn settle(write: &Write<'_>, id: &str, epoch: u64, reservation: &str, usage: &Usage) -> Result<(), Failure> {
    let (row, _) = claims::claimed(write, id, epoch)?;
    let number = reservation.strip_prefix("u-").and_then(|number| number.parse::<i64>().ok());
    let settled = write.execute(
        "UPDATE usage SET state = 'settled', used = ?3
         WHERE number = ?1 AND item = ?2 AND step IS NULL AND state = 'open'",
        params![number, id, serde_json::to_string(usage)?],
    )?;
    if settled == 0 {
        return Err(rules::no_such_reservation(id, reservation).into());
    }
    add_usage(write, &row.item, usage)
}

/// Adds to the sums of the item's run.
pub(crate) fn add_usage(write: &Write<'_>, item: &Item, usage: &Usage) -> Result<(), Failure> {
    write.execute(
        "UPDATE runs SET turns = turns + ?2, input_tokens = input_tokens + ?3, output_tokens = output_tokens + ?4,
             cache_read_tokens = cache_read_tokens + ?5, cache_write_tokens = cache_write_tokens + ?6,
             cost_usd = cost_usd + ?7
         WHERE id = ?1",
        params![
            item.run,
            usage.turns,
            usage.input_tokens,
            usage.output_tokens,
            usage.cache_read_tokens,
            usage.cache_write_tokens,
            usage.cost_usd
        ],
    )?;
    Ok(())
}
