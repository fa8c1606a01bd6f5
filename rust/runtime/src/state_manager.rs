//! How the agents of a process stand, for whoever is not in that process: the fold of its events ([`Picture`]), and what
//! can be seen of it now laid over it. Nothing of the second kind is ever stored: it would be a lie a moment later.
//!
//! **TRUTH-2** An agent is busy only while its claim's lease is renewed, and nobody works in a process that is gone.

use mnemosyne_core::{AgentPicture, AgentState, Picture, Problem};
use mnemosyne_store::{EventQuery, Store, UnderWay};
use serde::Serialize;
use std::collections::BTreeMap;

/// Events at a time.
const PAGE: u32 = 1_000;

/// The picture of one boot, and how far it has read.
#[derive(Debug, Clone, PartialEq)]
pub struct StateManager {
    boot: String,
    picture: Picture,
}

/// What can be seen of a boot now.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// Its lock is held.
    pub alive: bool,
    /// The claims that it holds.
    pub claims: Vec<UnderWay>,
    /// The store's clock; milliseconds since 1970.
    pub now: i64,
}

/// One agent, as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AgentView {
    /// By its events, with the state that it is seen in.
    #[serde(flatten)]
    pub agent: AgentPicture,
    /// What it works on.
    pub item: Option<String>,
}

impl StateManager {
    /// Nothing read yet.
    pub fn new(boot: impl Into<String>) -> Self {
        Self { boot: boot.into(), picture: Picture::default() }
    }

    /// Reads what was committed since the last call.
    ///
    /// # Errors
    /// The store cannot be read; what was read before stays.
    pub async fn catch_up(&mut self, store: &dyn Store) -> Result<&Picture, Problem> {
        loop {
            let (since, boot) = (self.picture.sequence, Some(self.boot.clone()));
            let events = store.events(EventQuery { since, boot, limit: PAGE, ..EventQuery::default() }).await?;
            if events.is_empty() {
                return Ok(&self.picture);
            }
            events.iter().for_each(|event| self.picture.apply(event));
        }
    }

    /// The agents by id, with what is seen of them laid over what they said.
    pub fn view(&self, live: &Live) -> Vec<AgentView> {
        view_of(&self.picture, live)
    }
}

/// The agents of a picture by id, with what is seen of them laid over what they said.
pub fn view_of(picture: &Picture, live: &Live) -> Vec<AgentView> {
    let claims: BTreeMap<&str, &UnderWay> = live.claims.iter().map(|claim| (claim.agent.as_str(), claim)).collect();
    let agents = picture.agents.values();
    agents.map(|agent| seen(agent.clone(), claims.get(agent.agent_id.as_str()).copied(), live)).collect()
}

fn seen(mut agent: AgentPicture, claim: Option<&UnderWay>, live: &Live) -> AgentView {
    let item = claim.map(|claim| claim.item.clone());
    if !live.alive {
        agent.state = AgentState::Stopped;
        agent.reason = Some("its process is gone".to_owned());
        return AgentView { agent, item: None };
    }
    match claim {
        Some(claim) if claim.lease_until < live.now => {
            agent.state = AgentState::Suspect;
            agent.reason = Some("its process has stopped renewing its lease".to_owned());
        }
        Some(_) if agent.state == AgentState::Idle => agent.state = AgentState::Busy,
        _ => {}
    }
    AgentView { agent, item }
}
