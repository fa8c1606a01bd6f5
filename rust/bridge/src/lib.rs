//! From tokio into Python asyncio and back.
//!
//! ```text
//! tokio worker ── push ──▶ Port (queue + socket, no GIL) ──▶ loop thread: drain, convert, one task per item
//!      ▲                                                          │ upcalls (AgentContext) and completions
//!      └──────────── oneshot / Done ◀── AgentLoop ◀───────────────┘
//! ```
//!
//! Invariants kept here:
//! - **GIL-1** Only the loop thread attaches, inside one `spawn_blocking` call, for life. Tokio workers never attach:
//!   they push messages and are answered by method calls that Python makes.
//! - **GIL-2** Nothing blocks while attached (locks here are held for a few instructions and never across a call into
//!   Python); nothing attaches while holding a lock.
//! - **GIL-3** [`attach::attach`] is the only function that attaches; sites are an enum; it asks first whether Python is
//!   initialised.
//! - **KILL-1** Dropping or timing out work cancels the Python task. Dropping the last handle stops the loop.

pub mod attach;
mod bell;
#[cfg(feature = "bench")]
mod bench;
mod bridge;
mod convert;
mod health;
mod host;
mod log;
mod loop_thread;
mod mailbox;
#[cfg(test)]
mod mailbox_tests;
mod metrics;
mod module;
mod plain;
mod port;
mod request;
mod slots;
mod sync;
mod upcall;

pub use bridge::{BridgeError, ClaudeAgentBridge};
pub use host::PythonHost;
pub use metrics::{BridgeMetrics, LoopMetrics, SiteMetrics, metrics};
pub use module::register;
