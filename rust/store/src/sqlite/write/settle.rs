//! A reservation becomes what was really used.

use super::{Write, claims, spending};
use crate::rules;
use crate::sqlite::failure::Failure;
use mnemosyne_core::Usage;
use rusqlite::params;

pub(crate) fn settle(write: &Write<'_>, id: &str, epoch: u64, reservation: &str, usage: &Usage) -> Result<(), Failure> {
    let (row, holder) = claims::claimed(write, id, epoch)?;
    let number = reservation.strip_prefix("u-").and_then(|number| number.parse::<i64>().ok());
    let settled = write.execute(
        "UPDATE usage SET state = 'settled', used = ?3
         WHERE number = ?1 AND item = ?2 AND step IS NULL AND state = 'open'",
        params![number, id, serde_json::to_string(usage)?],
    )?;
    if settled == 0 {
        return Err(rules::no_such_reservation(id, reservation).into());
    }
    spending::charge(write, &row.item, &holder.agent, Some(usage), &[])
}
