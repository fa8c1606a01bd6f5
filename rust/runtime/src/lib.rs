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

pub mod host;

pub use host::*;
