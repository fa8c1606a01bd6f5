//! The living tree.
//!
//! ```text
//! root
//! ├── orchestrator supervisor ── orchestrator-1
//! ├── optimizer supervisor    ── optimizer-1 … n
//! ├── reviewer supervisor     ── reviewer-1 … n
//! └── executor supervisor     ── executor-1 … n        each agent: an actor with `host: Option<Arc<dyn AgentHost>>`
//! ```
#![forbid(unsafe_code)]

pub mod handle;
pub mod health;
pub mod host;
pub mod tree;

pub use handle::{AgentHandle, BoxFuture, WorkError};
pub use health::{AgentHealth, RoleHealth, RoleState, StoreHealth, StoreState, SystemHealth};
pub use host::*;
pub use tree::{RoleSpec, Tree, TreeConfig};
