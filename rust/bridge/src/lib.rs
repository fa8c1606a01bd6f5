//! From tokio into Python asyncio and back.
//!
//! ```text
//! tokio worker ── push ──▶ Channel (mailbox + bell, no GIL) ──▶ loop thread: a tick of messages, tasks of agents
//!      ▲                                                           │ upcalls (AgentContext) and outcomes
//!      └── waiters ◀── Courier (one tokio task) ◀── outbox ◀───────┘ handed over in batches
//! ```
//!
//! Invariants kept here:
//! - **GIL-1** Only threads of [`attach`]'s own attach, each inside its `spawn_blocking`: the loop thread, for life; the
//!   bounded pool for plain functions; the witness of a stuck loop. Tokio workers never attach: they push messages and
//!   are answered by method calls that Python makes. A debug build panics where another thread tries.
//! - **GIL-2** Nothing blocks while attached (locks here are held for a few instructions and never across a call into
//!   Python); nothing attaches while holding a lock.
//! - **GIL-3** [`attach::attach`] is the only function that attaches; sites are an enum; it asks first whether Python is
//!   initialised.
//! - An agent may have a process of its own ([`worker`]): the same loop behind a socket, which no thread that attaches has
//!   any part in.
//! - **KILL-1** Dropping or timing out work cancels the Python task; what does not stop is abandoned and counted. Dropping the
//!   last handle stops the loop. A thread that is stuck in somebody's code is never joined.

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
mod starter;
mod sync;
mod upcall;
mod worker;

pub use bridge::{BridgeError, ClaudeAgentBridge};
pub use host::PythonHost;
pub use metrics::{BridgeMetrics, LoopMetrics, SiteMetrics, metrics};
pub use module::{Handle, register};
pub use port::{Port, answer};
