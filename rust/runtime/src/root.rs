//! The root: one supervisor per role, started in the order of the roles, restarted when they die.
//!
//! A role supervisor's state can be made anew from its record, so its restart loses nothing: its agents get new
//! generations, their claims go back without a charge. **SUP-2** The root has restart windows of its own. A supervisor
//! that keeps dying degrades its role and is tried again every minute; nothing exits the process.

use crate::background::Timer;
use crate::record::{RoleRecord, TreeRecord, locked};
use crate::role_supervisor::RoleSupervisor;
use mnemosyne_core::{AgentRole, RestartDecision, RestartPolicy, Strategy, SupervisorSpec};
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The roles share nothing but the store, so each is restarted by itself. The numbers are those of a role: what restarts
/// there is an agent, here it is the code that restarts agents, which has no reason to die at all.
pub(crate) const SPEC: SupervisorSpec = SupervisorSpec { strategy: Strategy::OneForOne, intensity: 5, period: 300_000 };

/// Between tries of a supervisor that used up its restarts.
const LAST_RESORT: Duration = Duration::from_secs(60);

pub(crate) enum RootMessage {
    RestartDue(AgentRole),
}

pub(crate) struct Root;

/// The actor's state.
pub(crate) struct Branches {
    tree: Arc<TreeRecord>,
    living: BTreeMap<AgentRole, ActorId>,
    policies: BTreeMap<AgentRole, RestartPolicy>,
    timers: BTreeMap<AgentRole, Timer>,
}

impl Actor for Root {
    type Msg = RootMessage;
    type State = Branches;
    type Arguments = Arc<TreeRecord>;

    /// The supervisors exist when the tree's start returns: whoever has a handle can use it at once.
    async fn pre_start(
        &self,
        myself: ActorRef<RootMessage>,
        tree: Arc<TreeRecord>,
    ) -> Result<Branches, ActorProcessingErr> {
        let roles: Vec<Arc<RoleRecord>> = tree.roles().cloned().collect();
        let mut branches =
            Branches { tree, living: BTreeMap::new(), policies: BTreeMap::new(), timers: BTreeMap::new() };
        for role in roles {
            branches.spawn(&myself, role).await;
        }
        Ok(branches)
    }

    async fn handle(
        &self,
        myself: ActorRef<RootMessage>,
        RootMessage::RestartDue(role): RootMessage,
        branches: &mut Branches,
    ) -> Result<(), ActorProcessingErr> {
        branches.timers.remove(&role);
        if let Some(record) = branches.tree.role(role).cloned().filter(|_| !branches.living.contains_key(&role)) {
            branches.spawn(&myself, record).await;
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<RootMessage>,
        event: SupervisionEvent,
        branches: &mut Branches,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                branches.ended(&myself, &cell, &reason.unwrap_or_else(|| "it ended".to_owned()));
            }
            SupervisionEvent::ActorFailed(cell, error) => branches.ended(&myself, &cell, &error.to_string()),
            _ => {}
        }
        Ok(())
    }
}

impl Branches {
    async fn spawn(&mut self, myself: &ActorRef<RootMessage>, role: Arc<RoleRecord>) {
        let name = role.role;
        let arguments = (self.tree.clone(), role);
        match RoleSupervisor::spawn_linked(None, RoleSupervisor, arguments, myself.get_cell()).await {
            Ok((supervisor, _)) => {
                self.living.insert(name, supervisor.get_id());
                let now = self.tree.now();
                self.policy(name).started(now);
            }
            Err(error) => self.restart(myself, name, &error.to_string()),
        }
    }

    fn policy(&mut self, role: AgentRole) -> &mut RestartPolicy {
        self.policies.entry(role).or_insert_with(|| RestartPolicy::from(&SPEC))
    }

    fn ended(&mut self, myself: &ActorRef<RootMessage>, cell: &ActorCell, reason: &str) {
        let found = self.living.iter().find(|(_, id)| **id == cell.get_id()).map(|(role, _)| *role);
        let Some(role) = found else { return };
        self.living.remove(&role);
        self.restart(myself, role, reason);
    }

    fn restart(&mut self, myself: &ActorRef<RootMessage>, role: AgentRole, reason: &str) {
        let Some(record) = self.tree.role(role).cloned() else { return };
        *locked(&record.supervisor) = None;
        if self.tree.closing.load(Ordering::SeqCst) {
            return;
        }
        let now = self.tree.now();
        let decision = self.policy(role).down(now, 0.5);
        let delay = match decision {
            RestartDecision::After { delay_ms } => Duration::from_millis(delay_ms),
            RestartDecision::Quarantine => {
                record.announce_degraded(&self.tree, Some(format!("its supervisor keeps going down: {reason}")));
                record.out_of_service.store(true, Ordering::SeqCst);
                self.tree.judge_intake();
                LAST_RESORT
            }
        };
        let myself = myself.clone();
        let timer = self.tree.background.after(delay, move || {
            let _ = myself.send_message(RootMessage::RestartDue(role));
        });
        self.timers.insert(role, timer);
    }
}
