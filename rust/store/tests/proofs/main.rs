//! Proofs of what the store promises, from outside: processes that are killed, a model that knows the answers, a disk that
//! forgets what was not synced. Shortened in `cargo test`; `make soak-store` runs them at full length.
//!
//! A failure prints its seed; `MNEMOSYNE_SEED` repeats it.

// All of it is test: what cannot happen may panic.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod chaos;
mod checker;
mod disk;
mod files;
mod frozen;
mod model;
mod power;
mod random;

/// A length that `make soak-store` raises by an environment variable.
fn length(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// A folder in memory where there is one: for what the disk's own time has nothing to do with.
fn memory_folder() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}
