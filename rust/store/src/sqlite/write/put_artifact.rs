//! An artifact is stored; the same name again replaces it and makes it the newest.

use super::{Write, claims};
use crate::rules;
use crate::sqlite::failure::Failure;
use mnemosyne_core::ArtifactRef;
use rusqlite::params;

pub(crate) fn put_artifact(
    write: &Write<'_>,
    item: &str,
    epoch: u64,
    name: &str,
    content: &[u8],
) -> Result<ArtifactRef, Failure> {
    let (row, _) = claims::claimed(write, item, epoch)?;
    store(write, row.item.run.as_deref(), item, name, content)
}

pub(crate) fn store(
    write: &Write<'_>,
    run: Option<&str>,
    item: &str,
    name: &str,
    content: &[u8],
) -> Result<ArtifactRef, Failure> {
    let reference = rules::artifact_reference(name, content);
    write.execute("DELETE FROM artifacts WHERE item = ?1 AND name = ?2", [item, name])?;
    write.execute(
        "INSERT INTO artifacts (run, item, name, sha256, size, content) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![run, item, name, reference.sha256, reference.size, content],
    )?;
    Ok(reference)
}
