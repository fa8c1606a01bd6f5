//! Agents that come and go while the tree runs: making one, and making a pool as large as asked.

use crate::finish::closed;
use crate::handle::AgentHandle;
use crate::host::AgentSpec;
use crate::record::{AgentRecord, RoleRecord, TreeRecord, locked};
use crate::role_supervisor::RoleMessage;
use futures_util::future::join_all;
use mnemosyne_core::error::codes;
use mnemosyne_core::{AgentRole, Problem, ProblemKind};
use std::sync::Arc;

/// Makes the record of a new agent and puts it under its role.
pub(crate) fn new_agent(
    tree: &TreeRecord,
    role: AgentRole,
    spec: AgentSpec,
    agent_id: Option<String>,
) -> Result<(Arc<AgentRecord>, Arc<RoleRecord>), Problem> {
    let invalid = |message: String| Problem::new(ProblemKind::InvalidInput, codes::AGENT_SPEC, message);
    if spec.in_flight == 0 {
        return Err(invalid("in_flight is 0".to_owned()).hint("an agent needs room for at least one item"));
    }
    let Some(record) = tree.role(role) else { return Err(invalid(format!("there is no role {role}"))) };
    let mut names = locked(&tree.names); // until the agent is in its place: two that come at once get two ids
    let agent_id = match agent_id {
        Some(id) if id.trim().is_empty() => return Err(invalid("the agent id is empty".to_owned())),
        Some(id) if !names.take(&id) => return Err(invalid(format!("the agent id {id:?} is taken"))),
        Some(id) => id,
        None => names.number(role),
    };
    let agent = AgentRecord::new(agent_id, role, spec, &record.spec);
    locked(&record.agents).push(agent.clone());
    Ok((agent, record.clone()))
}

/// Adds one agent to a role; it starts at once if a bridge is registered.
pub(crate) fn add_agent(
    tree: &Arc<TreeRecord>,
    role: AgentRole,
    spec: AgentSpec,
    agent_id: Option<String>,
) -> Result<AgentHandle, Problem> {
    if tree.is_draining() {
        return Err(closed());
    }
    let (agent, record) = new_agent(tree, role, spec, agent_id)?;
    // A role whose supervisor is just being restarted finds the agent in its record.
    record.send(RoleMessage::AddAgent(agent.clone()));
    Ok(AgentHandle::new(tree.clone(), record, agent))
}

/// Adds one agent like the first ones of its role, or of another class (`package.module:Class`) with their configuration.
pub(crate) fn add_like(tree: &Arc<TreeRecord>, role: AgentRole, class: Option<&str>) -> Result<(), Problem> {
    let template = tree.role(role).and_then(|role| role.template.clone());
    let spec = match (template, class.map(AgentSpec::import)) {
        (Some(like), None) => like,
        (Some(like), Some(own)) => AgentSpec { source: own.source, importable: own.importable, ..like },
        (None, Some(own)) => own,
        (None, None) => {
            let message = format!("the role {role} was begun without an agent that another could be like");
            return Err(Problem::new(ProblemKind::InvalidInput, codes::NO_POOL, message).hint("name a class"));
        }
    };
    add_agent(tree, role, spec, None).map(drop)
}

/// New agents like the first ones, or the youngest are ended, side by side, each with the time of its own specification,
/// and are not kept. The youngest of all is told first: who goes is then found at the end of each list. Agents that were
/// added by hand, or were ended, are not counted.
pub(crate) async fn scale(tree: &Arc<TreeRecord>, role: AgentRole, instances: u32) -> Result<(), Problem> {
    let Some((record, template)) = tree.role(role).and_then(|role| role.pool()) else {
        let message = format!("the role {role} is no pool that could be scaled");
        return Err(Problem::new(ProblemKind::InvalidInput, codes::NO_POOL, message)
            .because("its supervisor has another strategy, or it was begun without an agent")
            .hint("add an agent with add_agent"));
    };
    let wanted = instances as usize;
    let pool = |agent: &AgentHandle| agent.role() == role && agent.is_like(&template) && !agent.is_ending();
    let agents: Vec<AgentHandle> = AgentHandle::all(tree).into_iter().filter(pool).collect();
    for _ in agents.len()..wanted {
        add_agent(tree, record.role, template.clone(), None)?;
    }
    join_all(agents.iter().skip(wanted).rev().map(AgentHandle::remove)).await;
    Ok(())
}
