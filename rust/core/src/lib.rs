//! The domain of mnemosyne, pure.
//!
//! Nothing here does I/O, reads a clock, knows a runtime, an actor or Python: every function is a value of its
//! arguments, so that the store, the tree and the tests agree by construction. Time comes in as milliseconds.
//!
//! Invariants that are decided here: **ONCE-1** (what follows an item is a pure function of the item and its
//! result), **SUP-2** (the error window and the restart window are two types that never meet).

#![forbid(unsafe_code)]

pub mod acceptance;
pub mod advance;
pub mod eligible;
pub mod error;
pub mod event;
pub mod picture;
pub mod plan;
pub mod record;
pub mod state;
pub mod stats;
pub mod store_picture;
pub mod supervision;
pub mod validation;
pub mod window;
pub mod work;

pub use advance::{Advance, first_items, item_dead, next_items, retry_task};
pub use eligible::{Candidate, Holding, eligible, rank};
pub use error::{Code, Problem, ProblemKind};
pub use event::{Event, EventKind, NewEvent};
pub use picture::{AgentPicture, Picture};
pub use plan::{Acceptance, Plan, PlanTask};
pub use record::{Attempt, Budget, Item, Limits, PhaseRecord, Run, RunOptions, Task};
pub use state::{AgentRole, AgentState, ItemKind, ItemState, Phase, PhaseState, RunState, TaskState};
pub use stats::{StatsFold, StoreStats};
pub use store_picture::{RunPicture, StorePicture, TaskPicture};
pub use supervision::{Exit, Isolation, Restart, Shutdown, SpecError, Strategy, SupervisorSpec, WorkerLimits};
pub use window::{Backoff, ErrorWindow, RestartDecision, RestartPolicy, Verdict};
pub use work::{ArtifactRef, Usage, WorkItem, WorkResult};
