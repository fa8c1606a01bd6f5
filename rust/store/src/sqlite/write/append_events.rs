//! Events of agents and roles.

use super::Write;
use crate::sqlite::events;
use crate::sqlite::failure::Failure;
use mnemosyne_core::NewEvent;

pub(crate) fn append_events(write: &Write<'_>, new: &[NewEvent]) -> Result<u64, Failure> {
    events::append(write, new)?;
    Ok(events::last_sequence(write.connection)?)
}
