//! Boots: one per store handle. A boot holds its lock file for life, and is dead only when that lock can be taken
//! (**FENCE-3**): no clock, no pid that another process may have been given since.
//!
//! The lock is `flock`, which belongs to the open file: the kernel gives it back when the process ends, however it ends.
//! The standard library opens files close-on-exec, so no child process keeps a dead boot alive.

use mnemosyne_core::error::codes;
use mnemosyne_core::{Problem, ProblemKind};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A boot that lives as long as this value.
#[derive(Debug)]
pub struct Boot {
    id: String,
    path: PathBuf,
    /// Holds the lock; closing it gives the lock back.
    _lock: File,
}

impl Boot {
    /// Begins a boot below the state directory.
    ///
    /// # Errors
    /// `Store` (MN-0203) where the lock file cannot be made.
    pub fn begin(state_directory: &Path) -> Result<Self, Problem> {
        let directory = directory(state_directory);
        make_private_directory(&directory)?;
        let id = new_id()?;
        let path = lock_path(state_directory, &id);
        let refuse = |error: std::io::Error| unavailable(&path, &error.to_string());
        let mut lock = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(refuse)?;
        lock.try_lock().map_err(|error| unavailable(&path, &error.to_string()))?;
        // For people who look into the folder; the store reads its own table.
        writeln!(lock, "{}", std::process::id()).map_err(refuse)?;
        Ok(Self { id, path, _lock: lock })
    }

    /// `b-` and eight hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        // A missing file is a dead boot, so nothing is lost if this fails: the lock goes with the file descriptor.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether a boot is dead: its lock can be taken, or its file is gone.
pub fn is_dead(state_directory: &Path, boot: &str) -> bool {
    match File::open(lock_path(state_directory, boot)) {
        // A shared lock, so that two that ask at the same time do not take each other for the boot.
        Ok(file) => file.try_lock_shared().is_ok(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// The state directory of the store at a path: `store.db` has `store.db.d`.
pub fn state_directory(store: &Path) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push(".d");
    PathBuf::from(name)
}

/// Makes a directory, and what is above it, that only the user can read.
fn make_private_directory(path: &Path) -> Result<(), Problem> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| unavailable(path, &error.to_string()))
}

/// A new boot id.
pub(crate) fn new_id() -> Result<String, Problem> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|error| {
        Problem::new(ProblemKind::Environment, codes::STORE_UNAVAILABLE, "the system gave no random numbers")
            .because(error.to_string())
    })?;
    Ok(format!("b-{:08x}", u32::from_be_bytes(bytes)))
}

fn directory(state_directory: &Path) -> PathBuf {
    state_directory.join("boots")
}

fn lock_path(state_directory: &Path, boot: &str) -> PathBuf {
    directory(state_directory).join(format!("{boot}.lock"))
}

fn unavailable(path: &Path, reason: &str) -> Problem {
    Problem::new(ProblemKind::Store, codes::STORE_UNAVAILABLE, format!("cannot write {}", path.display()))
        .because(reason)
        .hint("check that the folder exists, is yours and has space; or choose another file with --store")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fence_3_a_boot_is_dead_only_when_its_lock_can_be_taken() {
        let folder = tempfile::tempdir().unwrap();
        let boot = Boot::begin(folder.path()).unwrap();
        let id = boot.id().to_owned();
        assert!(id.len() == 10 && id.starts_with("b-"), "{id}");
        assert!(!is_dead(folder.path(), &id));
        drop(boot);
        assert!(is_dead(folder.path(), &id));
    }

    #[test]
    fn fence_3_a_lock_file_that_was_left_behind_is_a_dead_boot() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("boots")).unwrap();
        std::fs::write(folder.path().join("boots/b-00000001.lock"), "1").unwrap();
        assert!(is_dead(folder.path(), "b-00000001"));
        assert!(is_dead(folder.path(), "b-00000002"), "a missing file is dead");
    }

    #[test]
    fn fence_3_who_asks_does_not_look_alive_to_another_who_asks() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("boots")).unwrap();
        let path = folder.path().join("boots/b-00000001.lock");
        std::fs::write(&path, "1").unwrap();
        let asking = File::open(&path).unwrap();
        asking.try_lock_shared().unwrap();
        assert!(is_dead(folder.path(), "b-00000001"));
    }
}
