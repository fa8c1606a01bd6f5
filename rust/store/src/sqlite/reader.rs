//! The one thread that reads: tokio's workers never wait for the disk, and readers never wait for the writer (WAL).

use super::failure::Failure;
use mnemosyne_core::Problem;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use tokio::sync::oneshot;

/// One read on its way.
pub(crate) type Read = Box<dyn FnOnce(&Connection, &Path) + Send>;

/// A read from a function and the place where its answer goes.
pub(crate) fn read<T: Send + 'static>(
    run: impl FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
    reply: oneshot::Sender<Result<T, Problem>>,
) -> Read {
    Box::new(move |connection, path| {
        let answer = in_snapshot(connection, run).map_err(|failure| failure.into_problem(path));
        let _ = reply.send(answer);
    })
}

/// All statements of one read see the same commit.
fn in_snapshot<T>(connection: &Connection, run: impl FnOnce(&Connection) -> Result<T, Failure>) -> Result<T, Failure> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
    run(&transaction)
}

/// What the thread owns.
pub(crate) struct Reader {
    pub(crate) connection: Connection,
    pub(crate) reads: Receiver<Read>,
    pub(crate) path: PathBuf,
}

impl Reader {
    /// Until every sender is gone.
    pub(crate) fn work(self) {
        while let Ok(read) = self.reads.recv() {
            read(&self.connection, &self.path);
        }
    }
}
