//! The one door into Python (GIL-3).

use pyo3::Python;

/// Every place that attaches. No catch-all: a new place must be named here and be inside `spawn_blocking`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// The loop thread, attached for life.
    LoopThread,
    /// `mnemosyne::python::initialize`, once, before any tokio worker matters.
    Initialize,
}

/// Python was never initialised in this process, or is being finalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Python is not initialised in this process (at {0:?})")]
pub struct NotInitialized(pub Site);

/// Runs `work` attached.
///
/// # Errors
/// [`NotInitialized`] instead of the panic that attaching to nothing would be.
#[allow(clippy::disallowed_methods)] // this is the door that the ban on all others leaves open
pub fn attach<R>(site: Site, work: impl for<'py> FnOnce(Python<'py>) -> R) -> Result<R, NotInitialized> {
    Python::try_attach(work).ok_or(NotInitialized(site))
}
