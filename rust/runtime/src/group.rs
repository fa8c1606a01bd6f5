//! Agents that restart together, under `one_for_all` and `rest_for_one`: who is concerned is stopped, the youngest first,
//! and then started again, the oldest first, each once the one before it has started. Part of the role supervisor.
//!
//! It is driven by what is so, not by what was said last: after each message [`Supervisor::advance_group`] looks which
//! step is due. A second death, a stop by a person or a child that ended unasked therefore need no cases of their own.
//! **SUP-1** Waiting for a stop or a start is waiting for a message.

use crate::agent::AgentMessage;
use crate::background::Timer;
use crate::role_supervisor::{RoleMessage, Supervisor};
use mnemosyne_core::{AgentState, Restart};
use std::time::Duration;

/// A restart of a group that is under way.
pub(crate) struct Group {
    /// Who is concerned, by id, in start order: slots may go while it lasts.
    members: Vec<String>,
    /// Whose death it was.
    first: String,
    reason: String,
    /// `None`: the group's window is full, and the end is quarantine.
    delay_ms: Option<u64>,
    stage: Stage,
}

enum Stage {
    Stopping,
    Waiting { number: u64, _timer: Timer },
    Starting,
}

impl Supervisor {
    /// The group's window has decided. A restart of the group that is under way is taken over.
    pub(crate) fn begin_group(&mut self, index: usize, reason: String, delay_ms: Option<u64>) {
        let affected = match delay_ms {
            Some(_) => self.role.spec.strategy.affected(index, self.slots.len()),
            None => 0..self.slots.len(),
        };
        let id = |index: usize| self.slots[index].record.agent_id.clone();
        let mut members: Vec<String> = affected.map(id).collect();
        let first = id(index);
        // Those of the restart before that were not started yet are still to be started.
        let left = self.group.take().map(|group| group.members).unwrap_or_default();
        let down = |id: &String| self.place(id).is_some_and(|index| self.slots[index].child.is_none());
        members.extend(left.into_iter().filter(|id| !members.contains(id) && down(id)).collect::<Vec<_>>());
        members.sort_by_key(|id| self.place(id));
        self.group = Some(Group { members, first, reason, delay_ms, stage: Stage::Stopping });
    }

    /// Takes every step that is due.
    pub(crate) async fn advance_group(&mut self) {
        if matches!(&self.group, Some(Group { stage: Stage::Stopping, .. })) {
            self.stop_youngest();
        }
        if matches!(&self.group, Some(Group { stage: Stage::Starting, .. })) {
            self.start_oldest().await;
        }
    }

    /// Tells the youngest that still lives to end; when none lives, the group waits for its delay.
    fn stop_youngest(&mut self) {
        let Some(group) = self.group.take() else { return };
        let living = |slot: &&mut crate::role_supervisor::Slot| {
            slot.child.is_some() && group.members.contains(&slot.record.agent_id)
        };
        if let Some(slot) = self.slots.iter_mut().rev().find(living) {
            if !slot.told && !slot.stopped {
                slot.told = true;
                slot.tell(AgentMessage::WindDown(slot.record.spec.shutdown));
            }
            self.group = Some(group);
            return;
        }
        self.forget_temporary(&group);
        match group.delay_ms {
            Some(delay_ms) => self.wait_for_group(group, delay_ms),
            None => self.quarantine_group(&group),
        }
    }

    /// A temporary bystander that was stopped with its group is over.
    fn forget_temporary(&mut self, group: &Group) {
        let reason = self.reason_for(group, "");
        while let Some(index) = self.slots.iter().position(|slot| {
            let temporary = slot.record.spec.restart == Restart::Temporary && !slot.stopped;
            temporary && slot.child.is_none() && group.members.contains(&slot.record.agent_id)
        }) {
            self.finish_end(index, &reason);
        }
    }

    fn wait_for_group(&mut self, group: Group, delay_ms: u64) {
        for index in self.members_to_start(&group) {
            let reason = self.reason_for(&group, &self.slots[index].record.agent_id);
            self.announce_restart(index, &reason, delay_ms);
        }
        self.groups += 1;
        let (number, myself) = (self.groups, self.myself.clone());
        let timer = self.tree.background.after(Duration::from_millis(delay_ms), move || {
            let _ = myself.send_message(RoleMessage::GroupDue(number));
        });
        self.group = Some(Group { stage: Stage::Waiting { number, _timer: timer }, ..group });
    }

    fn quarantine_group(&mut self, group: &Group) {
        for index in self.members_to_start(group) {
            let reason = self.reason_for(group, &self.slots[index].record.agent_id);
            self.quarantine(index, &reason);
        }
    }

    pub(crate) fn group_due(&mut self, due: u64) {
        if let Some(group) = self.group.as_mut()
            && matches!(group.stage, Stage::Waiting { number, .. } if number == due)
        {
            group.stage = Stage::Starting;
        }
    }

    /// Starts the oldest that is down, unless one before it is still on its way.
    async fn start_oldest(&mut self) {
        let Some(group) = self.group.take() else { return };
        for id in &group.members {
            let Some(index) = self.place(id) else { continue };
            let slot = &self.slots[index];
            let (state, started) = (slot.record.book().state, slot.child.is_some());
            let out = slot.stopped || matches!(state, AgentState::Degraded | AgentState::Quarantined);
            if out || slot.ready {
                continue; // what cannot be made now is probed by itself, and nobody waits for it
            }
            if !started {
                self.spawn_child(index).await;
            }
            if self.group.is_none() {
                self.group = Some(group); // else its spawn failed, and the next restart has begun
            }
            return;
        }
    }

    fn members_to_start(&self, group: &Group) -> Vec<usize> {
        let slots = self.slots.iter().enumerate();
        let wanted = |slot: &crate::role_supervisor::Slot| {
            group.members.contains(&slot.record.agent_id)
                && !slot.stopped
                && slot.record.book().state != AgentState::Quarantined
        };
        slots.filter(|(_, slot)| wanted(slot)).map(|(index, _)| index).collect()
    }

    fn reason_for(&self, group: &Group, agent_id: &str) -> String {
        if agent_id == group.first { group.reason.clone() } else { format!("with {}: {}", group.first, group.reason) }
    }
}
