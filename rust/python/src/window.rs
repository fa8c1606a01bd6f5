//! The window as Python holds it: opened over a store, asked for the orders that came in, told what became of them.

use mnemosyne_bridge::{Handle, Port, answer};
use mnemosyne_core::error::codes;
use mnemosyne_core::{Problem, ProblemKind};
use mnemosyne_server::{Desk, Order, OrderKind, Server, Token, listen, token_file};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A window; closed with its last reference.
#[pyclass(frozen, module = "mnemosyne._core")]
pub(crate) struct Window(Arc<Opened>);

#[derive(Default)]
struct Opened {
    /// Empty until it is open.
    served: OnceLock<(Server, Desk)>,
    /// Orders that Python works on.
    orders: Mutex<(u64, HashMap<u64, Order>)>,
}

#[pymethods]
impl Window {
    #[new]
    fn new() -> Self {
        Self(Arc::default())
    }

    /// Opens it over a handle's store; answered with `{port, token_file}`.
    fn open(&self, port: &Port, ticket: u64, handle: &Handle, path: PathBuf, number: u16) -> PyResult<()> {
        let (opened, store) = (Arc::clone(&self.0), handle.shared_store());
        answer(port, ticket, async move {
            let file = token_file(&path);
            let token = Token::at(&file)?;
            let listener = listen(number).map_err(|error| taken(number, &error))?;
            let served = Server::open(listener, store, token).map_err(|error| taken(number, &error))?;
            let number = served.0.address().port();
            if opened.served.set(served).is_err() {
                return Err(Problem::new(ProblemKind::Closed, codes::CLOSED, "this window was opened before"));
            }
            Ok(json!({"port": number, "token_file": file}))
        })
    }

    /// The next order; answered with `{number, kind, run, body}`, or None once the window is closed.
    fn take(&self, port: &Port, ticket: u64) -> PyResult<()> {
        let opened = Arc::clone(&self.0);
        answer(port, ticket, async move {
            let Some((_, desk)) = opened.served.get() else { return Ok(Value::Null) };
            Ok(desk.take().await.map_or(Value::Null, |order| opened.keep(order)))
        })
    }

    /// What became of an order: JSON, or a refusal as JSON.
    #[pyo3(signature = (number, value, refusal = None))]
    fn answer(&self, number: u64, value: &str, refusal: Option<&str>) -> PyResult<()> {
        let unreadable = |error: serde_json::Error| PyRuntimeError::new_err(error.to_string());
        let said = match refusal {
            Some(refusal) => Err(serde_json::from_str::<Problem>(refusal).map_err(unreadable)?),
            None => Ok(serde_json::from_str(value).map_err(unreadable)?),
        };
        if let Some(order) = self.0.orders().1.remove(&number) {
            order.answer(said);
        }
        Ok(())
    }

    /// Closes it: no more orders, and those under way are refused.
    fn close(&self) {
        if let Some((server, _)) = self.0.served.get() {
            server.close();
        }
        self.0.orders().1.clear();
    }
}

impl Opened {
    fn orders(&self) -> std::sync::MutexGuard<'_, (u64, HashMap<u64, Order>)> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, order: Order) -> Value {
        let (kind, run) = match &order.kind {
            OrderKind::SubmitRun => ("submit_run", None),
            OrderKind::SubmitItem => ("submit_item", None),
            OrderKind::ResumeRun(run) => ("resume_run", Some(run.clone())),
        };
        let body = order.body.clone();
        let mut orders = self.orders();
        orders.0 += 1;
        let number = orders.0;
        orders.1.insert(number, order);
        json!({"number": number, "kind": kind, "run": run, "body": body})
    }
}

fn taken(port: u16, error: &std::io::Error) -> Problem {
    Problem::new(ProblemKind::Environment, codes::PORT_TAKEN, format!("the window cannot listen on port {port}"))
        .because(error.to_string())
        .hint("mnemosyne serve --port 0 takes any free port")
}
