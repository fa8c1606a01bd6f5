//! Python inside a Rust binary.

use crate::BridgeError;
use mnemosyne_bridge::attach::{Site, attach};
use pyo3::prelude::*;
use std::path::PathBuf;
use std::sync::OnceLock;

/// How Python is set up. The key never goes through the environment.
#[derive(Default)]
pub struct Config {
    /// Folders put in front of `sys.path`: where the package and the agents' modules are.
    pub paths: Vec<PathBuf>,
    /// The API key for agents that have none in their configuration.
    pub api_key: Option<String>,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = self.api_key.as_ref().map(|_| "set");
        formatter.debug_struct("Config").field("paths", &self.paths).field("api_key", &key).finish()
    }
}

/// Initialises Python, once, before the first agent. Our module is found in this binary, so that no second copy of it
/// is loaded out of a wheel. Installs no signal handler; the interpreter is never finalised by us.
///
/// # Errors
/// [`BridgeError::Import`] where a path or the package cannot be used.
pub fn initialize(config: Config) -> Result<(), BridgeError> {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        // SAFETY: the name is a static C string, the function is the one the macro made for this module, and no
        // interpreter has been started yet by us; CPython refuses (-1) if one runs, and then the import below tells.
        #[allow(unsafe_code)]
        unsafe {
            if pyo3::ffi::Py_IsInitialized() == 0 {
                pyo3::ffi::PyImport_AppendInittab(c"mnemosyne._core".as_ptr(), Some(core_module::__pyo3_init));
            }
        }
        Python::initialize();
    });
    let prepared = attach(Site::Initialize, |py| prepare(py, &config));
    match prepared {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(BridgeError::Import(error.to_string())),
        Err(_) => Err(BridgeError::PythonNotInitialized),
    }
}

/// Version and base prefix of the interpreter, as `sys` says them: `sys.version sys.base_prefix`.
///
/// # Errors
/// [`BridgeError::PythonNotInitialized`].
pub fn version() -> Result<String, BridgeError> {
    let asked = attach(Site::Initialize, |py| -> PyResult<String> {
        let sys = py.import("sys")?;
        let version: String = sys.getattr("version")?.extract()?;
        let prefix: String = sys.getattr("base_prefix")?.extract()?;
        Ok(format!("{version} {prefix}"))
    });
    match asked {
        Ok(version) => version.map_err(|error| BridgeError::Import(error.to_string())),
        Err(_) => Err(BridgeError::PythonNotInitialized),
    }
}

fn prepare(py: Python<'_>, config: &Config) -> PyResult<()> {
    let path = py.import("sys")?.getattr("path")?;
    for (index, folder) in config.paths.iter().enumerate() {
        // As text: sys.path ignores pathlib objects.
        path.call_method1("insert", (index, folder.as_os_str()))?;
    }
    py.import("mnemosyne._core")?;
    if let Some(key) = &config.api_key {
        py.import("mnemosyne.config.secrets")?.call_method1("provide", (key,))?;
    }
    Ok(())
}

#[pymodule]
#[pyo3(name = "_core")]
fn core_module(module: &Bound<'_, PyModule>) -> PyResult<()> {
    mnemosyne_bridge::register(module)
}
