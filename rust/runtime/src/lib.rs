//! The living tree.
//!
//! ```text
//! root
//! ├── orchestrator supervisor ── orchestrator-1
//! ├── optimizer supervisor    ── optimizer-1 … n
//! ├── reviewer supervisor     ── reviewer-1 … n
//! └── executor supervisor     ── executor-1 … n        each agent: an actor with `host: Option<Arc<dyn AgentHost>>`
//! ```
//!
//! Work is pulled from the store and pushed to nobody: a supervisor claims for an agent that has room, hands the claim
//! to the agent's actor, the actor to the host; the end of the claim is stored beside the actors. **SUP-1 … SUP-4**,
//! **FENCE-2**, **KILL-1** and **DOWN-1** are kept here; each file names those that it keeps.
#![forbid(unsafe_code)]

pub mod handle;
pub mod health;
pub mod host;
pub mod operate;
pub mod state_manager;
pub mod tree;

mod agent;
mod assignment;
mod background;
mod custody;
mod dispatch;
mod drain;
mod event_log;
mod finish;
mod group;
mod guards;
mod pool;
mod pump;
mod record;
mod role_supervisor;
mod root;
mod settle;

#[cfg(test)]
mod tests;

pub use handle::{AgentHandle, BoxFuture, WorkError};
pub use health::{
    AgentHealth, IntakeHealth, IntakeState, RoleHealth, RoleState, StoreHealth, StoreState, SystemHealth,
};
pub use host::*;
pub use state_manager::{AgentView, Live, StateManager, view_of};
pub use tree::{RoleSpec, Tree, TreeConfig, WeakTree};
