//! A claim ends without a result: the item is ready again, or dead by the poison rule.

use super::{Write, claims};
use crate::rules::{self, Holder};
use crate::sqlite::events;
use crate::sqlite::failure::Failure;
use crate::types::{Release, ReleaseReason, Released};
use rusqlite::params;

pub(crate) fn release(write: &Write<'_>, release: Release) -> Result<Released, Failure> {
    let Release { item: id, epoch, reason, generation, delay_ms, error, events: mut said } = release;
    let (row, holder) = claims::claimed(write, &id, epoch)?;
    claims::end(write, &row.item, outcome(reason))?;
    said.extend(error.map(|text| rules::failed_event(&row.item, &text)));
    rules::sign(&mut said, &id, &holder);
    events::append(write, &said)?;
    let not_before = (delay_ms > 0).then(|| write.now.saturating_add(delay_ms));
    let model_failures = u32::from(reason == ReleaseReason::Model);
    write.execute(
        "UPDATE items SET not_before = ?2, model_failures = model_failures + ?3 WHERE id = ?1",
        params![id, not_before, model_failures],
    )?;
    match reason {
        ReleaseReason::Crash => claims::crash(write, row, &Holder { generation, ..holder }),
        ReleaseReason::Error | ReleaseReason::Model | ReleaseReason::Innocent => Ok(Released::Ready),
    }
}

/// For the history of claims.
fn outcome(reason: ReleaseReason) -> &'static str {
    match reason {
        ReleaseReason::Error => "error",
        ReleaseReason::Crash => "crash",
        ReleaseReason::Model => "model",
        ReleaseReason::Innocent => "released",
    }
}
