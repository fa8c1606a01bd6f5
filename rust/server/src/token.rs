//! The token that opens the window: made once per store, kept in a file beside it that only its user can read.
//!
//! The file's one line is a header of HTTP, so that `curl -H @FILE` sends it without naming it in an argument list, which
//! every user of the machine can read (SECRET-1).

use mnemosyne_core::error::codes;
use mnemosyne_core::{Problem, ProblemKind};
use mnemosyne_store::boot::state_directory;
use sha2::{Digest, Sha256};
use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const SCHEME: &str = "Authorization: Bearer ";
/// Bytes of randomness.
const LENGTH: usize = 32;

/// What is asked for. Compared by digest, so that the time says nothing about it.
#[derive(Clone)]
pub struct Token {
    digest: [u8; 32],
}

impl std::fmt::Debug for Token {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Token")
    }
}

/// Where the token of a store is kept.
pub fn token_file(store: &Path) -> PathBuf {
    state_directory(store).join("authorization")
}

impl Token {
    /// The token in a file; made where there is none.
    ///
    /// # Errors
    /// MN-0713: it cannot be read or written, others may read it, or it holds no token.
    pub fn at(path: &Path) -> Result<Self, Problem> {
        match std::fs::metadata(path) {
            Ok(found) if found.mode() & 0o077 != 0 => {
                let mode = format!("its mode is {:04o}, so others may have read it", found.mode() & 0o7777);
                Err(unusable(path, mode).hint(format!("rm {}, and serve again: a new one is made", path.display())))
            }
            Ok(_) => Self::read(path),
            Err(error) if error.kind() == ErrorKind::NotFound => match Self::make(path) {
                // Another window of the same store was faster.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Self::read(path),
                made => made.map_err(|error| unusable(path, error.to_string())),
            },
            Err(error) => Err(unusable(path, error.to_string())),
        }
    }

    /// Whether that is it.
    pub fn is(&self, said: &str) -> bool {
        let said = said.trim();
        let said = said.strip_prefix(SCHEME).unwrap_or(said);
        self.digest == digest(said)
    }

    fn read(path: &Path) -> Result<Self, Problem> {
        let text = std::fs::read_to_string(path).map_err(|error| unusable(path, error.to_string()))?;
        let token = text.strip_prefix(SCHEME).map(str::trim_end).filter(|token| token.len() == 2 * LENGTH);
        let token = token.ok_or_else(|| {
            unusable(path, "it holds no token").hint(format!("rm {}, and serve again", path.display()))
        })?;
        Ok(Self { digest: digest(token) })
    }

    fn make(path: &Path) -> std::io::Result<Self> {
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let mut bytes = [0; LENGTH];
        getrandom::fill(&mut bytes).map_err(|error| std::io::Error::other(error.to_string()))?;
        let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        // Whole or not at all: who reads it meanwhile must not find half of it.
        let new = path.with_extension(format!("{}.new", std::process::id()));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        writeln!(file, "{SCHEME}{token}")?;
        let linked = std::fs::hard_link(&new, path);
        std::fs::remove_file(&new)?;
        linked.map(|()| Self { digest: digest(&token) })
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

fn unusable(path: &Path, reason: impl Into<String>) -> Problem {
    Problem::new(
        ProblemKind::Environment,
        codes::TOKEN_FILE,
        format!("the token file {} cannot be used", path.display()),
    )
    .because(reason)
    .hint("check that the folder is yours and has space")
}
