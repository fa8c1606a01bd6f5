//! What `mnemosyne._core` offers to Python: a mailbox, the calls that open a store or a tree, and their handles.

use crate::attach::{is_a_fork, same_process, settle_here, still_open};
use crate::convert::{PlanModel, from_python, item_from_model, result_from_python, to_python};
use crate::log::install;
use crate::loop_thread::{AgentLoop, stop_at_exit};
use crate::port::{Port, Reply};
use crate::request::{
    OpenTree, OpenedTree, Watched, open_store, serve_file, serve_store, serve_tree, submit_item, try_send_work,
    wait_item,
};
use crate::worker;
use mnemosyne_core::validation::{Finding, item_findings, item_warnings};
use mnemosyne_core::{Plan, Problem, ProblemKind, WorkItem, error::codes};
use mnemosyne_store::{Durability, Store};
use pyo3::exceptions::{PyRuntimeError, PyRuntimeWarning, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use tokio::runtime::Runtime;

/// Half the cores, and two at most: more fight with the agents' loop and the store's writer for them. With two workers on two
/// cores, each item cost 1.3 us of waiting for a core, and with one 0.05: three threads had work, and the loop is one of them.
/// One for two, in turn: 35 wake-ups for 1,000 items instead of 77 and 1.6 us of tokio's time for each instead of 2.2 (64 in
/// flight); ratio to a task per item 1.40 for 1.28, at 1,000 in flight 1.71 for 1.42; durable items 6,066/s for 5,977/s. On
/// more than two cores nothing was measured.
fn workers() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (cores / 2).clamp(1, 2)
}

/// The runtime of a process that Python started. Never dropped: dropping it would join threads while attached.
pub(crate) fn runtime() -> PyResult<&'static Runtime> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let built = RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let built = builder.worker_threads(workers()).thread_name("mnemosyne").enable_all().build();
        built.inspect(|runtime| install(runtime.handle())).map_err(|error| error.to_string())
    });
    built.as_ref().map_err(|error| PyRuntimeError::new_err(format!("the Rust runtime did not start: {error}")))
}

/// Something on the Rust side that Python holds; dropped with its last reference.
#[pyclass(frozen, module = "mnemosyne._core")]
pub struct Handle {
    store: Arc<dyn Store>,
    watched: Arc<Watched>,
    tree: Option<OpenedTree>,
}

impl Handle {
    /// Its store, for what else looks at it.
    pub fn shared_store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store)
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Handle").field("boot", &self.store.boot()).field("tree", &self.tree.is_some()).finish()
    }
}

#[pymethods]
impl Handle {
    /// Asks the store; answered on `port` under `ticket`.
    fn store(&self, port: &Port, ticket: u64, request: &Bound<'_, PyAny>) -> PyResult<()> {
        same_process(request.py())?;
        let request = from_python(request)?;
        let store = Arc::clone(&self.store);
        port.channel.answer(runtime()?.handle(), ticket, serve_store(store, request));
        Ok(())
    }

    /// Submits an item; answered with its id. A door of its own, as `wait` has: they are asked once for every item, and
    /// `store` reads its requests in two steps.
    fn submit(&self, port: &Port, ticket: u64, item: &Bound<'_, PyAny>, how: &Bound<'_, PyAny>) -> PyResult<()> {
        same_process(item.py())?;
        let (item, how) = (item_from_model(item)?, from_python(how)?);
        let (store, watched) = (Arc::clone(&self.store), Arc::clone(&self.watched));
        port.channel.answer_where_told(runtime()?.handle(), ticket, submit_item(store, watched, item, how));
        Ok(())
    }

    /// Waits for the end of an item; answered with it.
    fn wait(&self, py: Python<'_>, port: &Port, ticket: u64, item: String) -> PyResult<()> {
        same_process(py)?;
        let (store, told) = (Arc::clone(&self.store), self.watched.take(&item));
        port.channel.answer_where_told(runtime()?.handle(), ticket, wait_item(store, item, told));
        Ok(())
    }

    /// Asks the tree; answered on `port` under `ticket`.
    fn tree(&self, port: &Port, ticket: u64, request: &Bound<'_, PyAny>) -> PyResult<()> {
        still_open(request.py())?;
        let request = from_python(request)?;
        let Some(opened) = &self.tree else {
            return Err(PyRuntimeError::new_err("this handle has no tree"));
        };
        port.channel.answer(runtime()?.handle(), ticket, serve_tree(opened.clone(), request));
        Ok(())
    }

    /// The boot of this process in the store.
    fn boot(&self) -> String {
        self.store.boot().to_owned()
    }

    /// Hands direct work over, or returns the refusal at once; the result is answered on `port` under `ticket`.
    fn try_send_work<'py>(
        &self,
        py: Python<'py>,
        port: &Port,
        ticket: u64,
        request: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        still_open(py)?;
        let request = from_python(request)?;
        let Some(opened) = &self.tree else {
            return Err(PyRuntimeError::new_err("this handle has no tree"));
        };
        let _entered = runtime()?.enter();
        match try_send_work(&opened.tree, request) {
            Ok(work) => {
                port.channel.answer(runtime()?.handle(), ticket, work);
                Ok(None)
            }
            Err(Reply::Error(refusal)) => to_python(py, &refusal).map(Some),
            Err(_) => Err(PyRuntimeError::new_err("a refusal is an error")),
        }
    }

    /// The tree's health, as `SystemHealth`; never blocks.
    fn health<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        same_process(py)?;
        let health = self.tree.as_ref().map(|opened| opened.tree.health());
        let value = serde_json::to_value(health).map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        to_python(py, &value)
    }

    /// The agents' ids.
    fn agents(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        same_process(py)?;
        let agents = self.tree.as_ref().map(|opened| opened.tree.agents()).unwrap_or_default();
        Ok(agents.iter().map(|agent| agent.agent_id().to_owned()).collect())
    }

    /// One agent's health, as `AgentHealth`, or None; never blocks.
    fn agent_health<'py>(&self, py: Python<'py>, agent: &str) -> PyResult<Bound<'py, PyAny>> {
        same_process(py)?;
        let health = self.tree.as_ref().and_then(|opened| opened.tree.agent(agent)).map(|handle| handle.health());
        let value = serde_json::to_value(health).map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        to_python(py, &value)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if is_a_fork() {
            // Letting go would wake threads that this process does not have, behind locks that may be held for ever.
            std::mem::forget((self.tree.take(), Arc::clone(&self.store)));
            return;
        }
        if let (Some(opened), Ok(runtime)) = (self.tree.take(), runtime()) {
            // Actors end on their own runtime; this may be the garbage collector of any Python thread.
            runtime.spawn(async move {
                opened.tree.shutdown().await;
                drop(opened);
            });
        }
    }
}

/// Opens a store to read, cancel and ask; answered with a `Handle`.
#[pyfunction]
#[pyo3(signature = (port, ticket, path, crash_safe = false))]
fn store(port: &Port, ticket: u64, path: PathBuf, crash_safe: bool) -> PyResult<()> {
    let durability = if crash_safe { Durability::CrashSafe } else { Durability::PowerSafe };
    port.channel.answer(runtime()?.handle(), ticket, async move {
        match open_store(path, durability).await {
            Ok(store) => Reply::Handle(Handle { store, watched: Arc::default(), tree: None }),
            Err(problem) => problem.into(),
        }
    });
    Ok(())
}

/// Looks at a store's file, or copies it.
#[pyfunction]
fn file(port: &Port, ticket: u64, request: &Bound<'_, PyAny>) -> PyResult<()> {
    let request = from_python(request)?;
    port.channel.answer(runtime()?.handle(), ticket, serve_file(request));
    Ok(())
}

/// Opens a tree of agents over the store of a handle, or in memory; answered with a `Handle`.
#[pyfunction]
#[pyo3(signature = (port, ticket, config, store))]
fn tree(port: &Port, ticket: u64, config: &Bound<'_, PyAny>, store: Option<&Handle>) -> PyResult<()> {
    still_open(config.py())?;
    let store = store.map(|handle| Arc::clone(&handle.store));
    let config = serde_json::from_value::<OpenTree>(from_python(config)?);
    port.channel.answer(runtime()?.handle(), ticket, async move {
        let config = match config {
            Ok(config) => config,
            Err(error) => {
                return Problem::new(ProblemKind::InvalidInput, codes::AGENT_SPEC, "the tree cannot be read")
                    .because(error.to_string())
                    .into();
            }
        };
        match config.open(store).await {
            Ok(opened) => {
                Reply::Handle(Handle { store: Arc::clone(&opened.store), watched: Arc::default(), tree: Some(opened) })
            }
            Err(problem) => problem.into(),
        }
    });
    Ok(())
}

/// Stops the agents' loop and waits for it, for Python's exit hook: after it no Rust thread touches Python.
#[pyfunction]
fn stop_loop(py: Python<'_>) -> PyResult<()> {
    stop_at_exit(py)
}

/// A frame of a worker process, see `worker.rs`. Refuses what is no JSON, as every call into Rust does.
#[pyfunction]
fn frame<'py>(kind: &str, number: u64, payload: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    framed(payload.py(), kind, number, &from_python(payload)?)
}

/// The frame of what an agent returned, where it is a plain result; None is no judgement.
#[pyfunction]
fn result_frame<'py>(slot: u64, result: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyBytes>>> {
    let Some(read) = result_from_python(result) else { return Ok(None) };
    let said = json!({"kind": "result", "result": read});
    framed(result.py(), "completed", slot, &said).map(Some)
}

fn framed<'py>(py: Python<'py>, kind: &str, number: u64, payload: &Value) -> PyResult<Bound<'py, PyBytes>> {
    let frame = worker::frame(kind, number, payload);
    frame.map(|frame| PyBytes::new(py, &frame)).map_err(PyValueError::new_err)
}

/// What is wrong with a plan, and what may be meant otherwise: errors and warnings. `TypeError` or `ValueError` where the
/// model has no longer its form.
#[pyfunction]
fn judge_plan(plan: PlanModel) -> (Vec<Told>, Vec<Told>) {
    let plan = Plan::from(plan);
    (told(plan.findings()), told(plan.warnings()))
}

/// The same for a work item, as JSON; `ValueError` where the text has not the form.
#[pyfunction]
fn judge_work_item(text: &str) -> PyResult<(Vec<Told>, Vec<Told>)> {
    let item: WorkItem = serde_json::from_str(text).map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok((told(item_findings(&item)), told(item_warnings(&item))))
}

fn told(found: Vec<Finding>) -> Vec<Told> {
    found.into_iter().map(|one| (one.code, one.path, one.value, one.message, one.fix)).collect()
}

/// A finding, for Python: `(code, path, value, message, fix)`.
type Told = (&'static str, String, String, String, String);

/// What the bridge counts; see `BridgeMetrics`.
#[pyfunction]
fn metrics(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    same_process(py)?;
    let value = serde_json::to_value(crate::metrics::metrics());
    to_python(py, &value.map_err(|error| PyRuntimeError::new_err(error.to_string()))?)
}

/// Adds everything to `mnemosyne._core`, whether the wheel or an embedding binary makes it.
///
/// # Errors
/// Python refuses an attribute.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    settle_here();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("debug_build", cfg!(debug_assertions))?;
    if cfg!(debug_assertions) {
        let warning = module.py().get_type::<PyRuntimeWarning>();
        PyErr::warn(module.py(), &warning, c"this is a debug build of mnemosyne: nothing measured with it counts", 1)?;
    }
    module.add_class::<Port>()?;
    module.add_class::<AgentLoop>()?;
    module.add_class::<Handle>()?;
    module.add_function(wrap_pyfunction!(store, module)?)?;
    module.add_function(wrap_pyfunction!(file, module)?)?;
    module.add_function(wrap_pyfunction!(metrics, module)?)?;
    module.add_function(wrap_pyfunction!(judge_plan, module)?)?;
    module.add_function(wrap_pyfunction!(judge_work_item, module)?)?;
    module.add_function(wrap_pyfunction!(frame, module)?)?;
    module.add_function(wrap_pyfunction!(result_frame, module)?)?;
    module.add_function(wrap_pyfunction!(tree, module)?)?;
    #[cfg(feature = "bench")]
    {
        module.add_function(wrap_pyfunction!(crate::bench::bench_bridge, module)?)?;
        module.add_function(wrap_pyfunction!(crate::bench::bench_ping_pong, module)?)?;
    }
    module.add_function(wrap_pyfunction!(stop_loop, module)?)
}
