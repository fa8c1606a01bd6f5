//! The window: HTTP over a store, for people and programs that look at what agents do, and tell them what to do.
//!
//! It needs the store and nothing else, so it shows what every process on that store does, whether one of them is its own
//! (`orchestrate --serve`) or none (`serve`). What it shows is the fold of the store's events ([`hub`]); what can be seen
//! now, which process lives and who holds a claim, is laid over it. What it is told goes through the same doors as the
//! command line's words ([`mnemosyne_runtime::operate`]); new work is read, judged and begun by who holds the [`Desk`].
//!
//! Invariants kept here:
//! - **SECRET-1** It listens on loopback only; nothing but `/health` answers without the token ([`door`]), which is in a
//!   file of mode 0600 and in no argument list, log or answer; a page of another origin can do nothing.
//! - **DUR-3** A client sees every event once, in sequence, from where it says ([`stream`]); where history is gone, it is
//!   told so. It is a cursor and no queue: a slow one costs no more than its socket, and holds up nobody.
//! - **TRUTH-2** A run is running only while its process lives.

#![forbid(unsafe_code)]

mod answer;
mod api;
mod desk;
mod door;
mod hub;
mod metrics;
mod net;
mod stream;
mod token;

pub use desk::{Desk, Order, OrderKind};
pub use net::{Server, listen};
pub use token::{Token, token_file};

#[cfg(test)]
mod tests;
