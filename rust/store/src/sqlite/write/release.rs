//! A claim ends without a result: the item is ready again, or dead by the poison rule.

use super::{Write, claims};
use crate::rules::{self, Holder, ParkedFor};
use crate::sqlite::failure::Failure;
use crate::sqlite::{events, rows};
use crate::types::{Release, ReleaseReason, Released};
use rusqlite::params;

pub(crate) fn release(write: &Write<'_>, release: &Release) -> Result<Released, Failure> {
    let parked = ParkedFor::of(release);
    let Release { item: id, epoch, reason, generation, delay_ms, error, class, events: mut said } = release.clone();
    let (row, holder) = claims::claimed(write, &id, epoch)?;
    claims::end(write, &row.item)?;
    let until = write.now.saturating_add(delay_ms);
    let why = parked.as_ref().map(serde_json::to_string).transpose()?;
    let model_failures = u32::from(reason == ReleaseReason::Model);
    write.execute(
        "UPDATE items SET not_before = ?2, parked = ?3, model_failures = model_failures + ?4 WHERE id = ?1",
        params![id, (delay_ms > 0).then_some(until), why, model_failures],
    )?;
    match parked {
        Some(why) => {
            let run_waits = match &row.item.run {
                Some(run) => rows::run_waits(write.connection, run, write.now)?,
                None => false,
            };
            said.push(rules::parked_event(&row.item, until, &why, run_waits));
        }
        None => said.extend(error.map(|text| rules::failed_event(&row.item, &text, class.as_deref()))),
    }
    rules::sign(&mut said, &id, &holder);
    events::append(write, &said)?;
    match reason {
        ReleaseReason::Crash => claims::crash(write, row, &Holder { generation, ..holder }),
        ReleaseReason::Error | ReleaseReason::Model | ReleaseReason::Parked | ReleaseReason::Innocent => {
            Ok(Released::Ready)
        }
    }
}
