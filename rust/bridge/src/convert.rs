//! JSON values and work to Python objects and back, without text in between. Runs attached, on the thread that asked.
//!
//! Work items and results have readers and writers of their own: straight from the typed value, with interned keys. The
//! reader of results is narrow on purpose: what it does not know it leaves to the loop, which judges it with the pydantic
//! model, so the two can never disagree about what is a result (TRUTH-1).

use crate::sync::{Mutex, locked};
use mnemosyne_core::state::UnknownName;
use mnemosyne_core::{Acceptance, AgentRole, Phase, Plan, PlanTask, WorkItem, WorkResult};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};
use serde_json::{Map, Number, Value};

/// Deeper values are refused: they would end the stack before they end.
const MAX_DEPTH: usize = 200;

/// Makes the Python object that stands for `value`.
pub(crate) fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Null => py.None().into_bound(py),
        Value::Bool(flag) => PyBool::new(py, *flag).to_owned().into_any(),
        Value::Number(number) => number_to_python(py, number)?,
        Value::String(text) => PyString::new(py, text).into_any(),
        Value::Array(items) => {
            let list = PyList::empty(py);
            for item in items {
                list.append(to_python(py, item)?)?;
            }
            list.into_any()
        }
        Value::Object(entries) => object_to_python(py, entries)?.into_any(),
    })
}

fn object_to_python<'py>(py: Python<'py>, entries: &Map<String, Value>) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (key, entry) in entries {
        dict.set_item(key, to_python(py, entry)?)?;
    }
    Ok(dict)
}

fn number_to_python<'py>(py: Python<'py>, number: &Number) -> PyResult<Bound<'py, PyAny>> {
    if let Some(value) = number.as_i64() {
        return Ok(value.into_pyobject(py)?.into_any());
    }
    if let Some(value) = number.as_u64() {
        return Ok(value.into_pyobject(py)?.into_any());
    }
    Ok(PyFloat::new(py, number.as_f64().unwrap_or(f64::NAN)).into_any())
}

/// The dict of the last item, without what an item has of its own: the next one mostly has the same phase, role, priority,
/// limit and attempt, and copying a dict costs half of filling one.
static TEMPLATE: Mutex<Option<Template>> = Mutex::new(None);

struct Template {
    same: Same,
    dict: Py<PyDict>,
}

/// Phase, role, priority, limit (its bits) and attempt.
type Same = (Phase, AgentRole, u8, u64, u32);

impl Template {
    /// In the order of the model, with places for what each item has of its own.
    fn new(py: Python<'_>, item: &WorkItem, same: Same) -> PyResult<Self> {
        let dict = PyDict::new(py);
        dict.set_item(intern!(py, "id"), py.None())?;
        dict.set_item(intern!(py, "description"), py.None())?;
        dict.set_item(intern!(py, "phase"), item.phase.as_str())?;
        dict.set_item(intern!(py, "role"), item.role.as_str())?;
        dict.set_item(intern!(py, "priority"), item.priority)?;
        dict.set_item(intern!(py, "depends_on"), py.None())?;
        dict.set_item(intern!(py, "file_scope"), py.None())?;
        dict.set_item(intern!(py, "context"), py.None())?;
        dict.set_item(intern!(py, "timeout_seconds"), PyFloat::new(py, item.timeout_seconds))?;
        dict.set_item(intern!(py, "attempt"), item.attempt)?;
        Ok(Self { same, dict: dict.unbind() })
    }
}

/// Makes the dict that an agent works on: the same keys and values as `WorkItem.model_dump(mode="json")`.
pub(crate) fn item_to_python<'py>(py: Python<'py>, item: &WorkItem) -> PyResult<Bound<'py, PyDict>> {
    // Named one by one, here and in the template, so that a field that is added to the type cannot be forgotten.
    let WorkItem { id, description, phase, role, priority, depends_on, file_scope, context, timeout_seconds, attempt } =
        item;
    let same = (*phase, *role, *priority, timeout_seconds.to_bits(), *attempt);
    // Out of its lock while it is used: whatever makes Python objects may run somebody's code.
    let known = locked(&TEMPLATE).take();
    let known = known.filter(|template| template.same == same);
    let template = known.map_or_else(|| Template::new(py, item, same), Ok)?;
    let dict = template.dict.bind(py).copy()?;
    let other = locked(&TEMPLATE).replace(template);
    drop(other);
    dict.set_item(intern!(py, "id"), PyString::new(py, id))?;
    dict.set_item(intern!(py, "description"), PyString::new(py, description))?;
    dict.set_item(intern!(py, "depends_on"), PyList::new(py, depends_on)?)?;
    dict.set_item(intern!(py, "file_scope"), PyList::new(py, file_scope)?)?;
    dict.set_item(intern!(py, "context"), object_to_python(py, context)?)?;
    Ok(dict)
}

/// Reads what an agent returned, where it is a plain result: a dict with `success` and nothing but `data` beside it (or empty
/// lists). `None` is no judgement: whoever asked looks closer. An error is left to it as well: its text may hold a secret,
/// and the loop knows those (SECRET-1).
pub(crate) fn result_from_python(object: &Bound<'_, PyAny>) -> Option<WorkResult> {
    let dict = object.cast_exact::<PyDict>().ok()?;
    let mut success = None;
    let mut result = WorkResult::success(Map::new());
    for (key, value) in dict.iter() {
        match key.cast_exact::<PyString>().ok()?.to_str().ok()? {
            "success" => success = Some(value.cast_exact::<PyBool>().ok()?.is_true()),
            "data" => {
                let data = value.cast_exact::<PyDict>().ok()?;
                result.data = Reader { tuples: false }.read_dict(data, 1).ok()?;
            }
            "error" if value.is_none() => {}
            "artifacts" | "evidence" if value.cast_exact::<PyList>().ok()?.is_empty() => {}
            _ => return None,
        }
    }
    result.success = success?;
    Some(result)
}

/// Reads a Python object as JSON.
///
/// # Errors
/// `TypeError` or `ValueError` naming the path of what is no JSON: bytes, NaN, an integer beyond 64 bits, a key that is
/// no text, a value that is nested too deeply.
pub(crate) fn from_python(object: &Bound<'_, PyAny>) -> PyResult<Value> {
    Reader { tuples: true }.read(object, 0).map_err(|refused| refused.into_error())
}

/// What cannot be read, and where; the path is put together on the way out, so that what can be read pays nothing for it.
struct Refused {
    /// From the innermost outwards.
    path: Vec<String>,
    why: Why,
}

enum Why {
    Value(String),
    Type(String),
    Python(PyErr),
}

impl Refused {
    fn because(why: Why) -> Self {
        Self { path: Vec::new(), why }
    }

    fn at(mut self, step: impl ToString) -> Self {
        self.path.push(step.to_string());
        self
    }

    fn into_error(self) -> PyErr {
        let shown = if self.path.is_empty() {
            "the value".to_owned()
        } else {
            let steps: Vec<&str> = self.path.iter().rev().map(String::as_str).collect();
            format!("the value at {}", steps.join("."))
        };
        match self.why {
            Why::Value(why) => PyValueError::new_err(format!("{shown} {why}")),
            Why::Type(why) => PyTypeError::new_err(format!("{shown} {why}")),
            Why::Python(error) => error,
        }
    }
}

impl From<PyErr> for Refused {
    fn from(error: PyErr) -> Self {
        Refused::because(Why::Python(error))
    }
}

struct Reader {
    /// Whether a tuple is taken for a list: in requests of our own, not in what an agent returns.
    tuples: bool,
}

impl Reader {
    fn read(&self, object: &Bound<'_, PyAny>, depth: usize) -> Result<Value, Refused> {
        if let Ok(text) = object.cast::<PyString>() {
            return Ok(Value::String(read_text(text, "holds")?));
        }
        if object.is_none() {
            return Ok(Value::Null);
        }
        if let Ok(flag) = object.cast::<PyBool>() {
            return Ok(Value::Bool(flag.is_true()));
        }
        if object.cast::<PyInt>().is_ok() {
            return read_integer(object);
        }
        if let Ok(float) = object.cast::<PyFloat>() {
            let number = Number::from_f64(float.value());
            return number.map(Value::Number).ok_or_else(|| {
                Refused::because(Why::Value(format!("is {}, which JSON has no word for", float.value())))
            });
        }
        if depth >= MAX_DEPTH {
            return Err(Refused::because(Why::Value("is nested too deeply".to_owned())));
        }
        if let Ok(dict) = object.cast::<PyDict>() {
            return self.read_dict(dict, depth + 1).map(Value::Object);
        }
        if object.cast::<PyList>().is_ok() || (self.tuples && object.cast::<PyTuple>().is_ok()) {
            let mut items = Vec::new();
            for (index, item) in object.try_iter()?.enumerate() {
                items.push(self.read(&item?, depth + 1).map_err(|refused| refused.at(index))?);
            }
            return Ok(Value::Array(items));
        }
        let name = object.get_type().name()?.to_string();
        Err(Refused::because(Why::Type(format!("is of type {name}, which is no JSON value"))))
    }

    fn read_dict(&self, dict: &Bound<'_, PyDict>, depth: usize) -> Result<Map<String, Value>, Refused> {
        let mut entries = Map::new();
        for (key, entry) in dict.iter() {
            let Ok(key) = key.cast::<PyString>() else {
                return Err(Refused::because(Why::Type("has a key that is no text".to_owned())));
            };
            let key = read_text(key, "has a key with")?;
            let value = self.read(&entry, depth).map_err(|refused| refused.at(&key))?;
            entries.insert(key, value);
        }
        Ok(entries)
    }
}

/// Python text may hold halves of surrogate pairs, which no UTF-8 can.
fn read_text(text: &Bound<'_, PyString>, what: &str) -> Result<String, Refused> {
    let read = text.to_str().map(str::to_owned);
    read.map_err(|_| Refused::because(Why::Value(format!("{what} a lone surrogate, which UTF-8 has no form for"))))
}

fn read_integer(object: &Bound<'_, PyAny>) -> Result<Value, Refused> {
    if let Ok(value) = object.extract::<i64>() {
        return Ok(Value::from(value));
    }
    let value = object.extract::<u64>();
    value.map(Value::from).map_err(|_| Refused::because(Why::Value("is an integer beyond 64 bits".to_owned())))
}

/// The work item that a Python model holds, read attribute by attribute: its dump as a dict and two readings of that took
/// 14 of the 397 us of processor time that a durable item cost.
///
/// # Errors
/// As [`from_python`]; `ValueError` where the model has no longer its form.
pub(crate) fn item_from_model(model: &Bound<'_, PyAny>) -> PyResult<WorkItem> {
    let py = model.py();
    let context = model.getattr(intern!(py, "context"))?;
    let read = (Reader { tuples: true }).read(&context, 0).map_err(|refused| refused.at("context").into_error())?;
    let Value::Object(context) = read else {
        return Err(PyTypeError::new_err("the value at context is no dict"));
    };
    let no_name = |problem: UnknownName| PyValueError::new_err(problem.to_string());
    Ok(WorkItem {
        id: field(model, intern!(py, "id"))?,
        description: field(model, intern!(py, "description"))?,
        phase: field::<String>(model, intern!(py, "phase"))?.parse().map_err(no_name)?,
        role: field::<String>(model, intern!(py, "role"))?.parse().map_err(no_name)?,
        priority: field(model, intern!(py, "priority"))?,
        depends_on: field(model, intern!(py, "depends_on"))?,
        file_scope: field(model, intern!(py, "file_scope"))?,
        context,
        timeout_seconds: field(model, intern!(py, "timeout_seconds"))?,
        attempt: field(model, intern!(py, "attempt"))?,
    })
}

fn field<T: for<'a, 'py> FromPyObject<'a, 'py>>(model: &Bound<'_, PyAny>, name: &Bound<'_, PyString>) -> PyResult<T> {
    let read = model.getattr(name)?.extract::<T>().map_err(Into::into);
    read.map_err(|error: PyErr| PyValueError::new_err(format!("the value at {name}: {error}")))
}

/// The plan that a Python model holds, read attribute by attribute: through JSON, which the model writes and serde reads, a
/// plan of 100 tasks took 0.58 ms to judge, and this way 0.46.
#[derive(FromPyObject)]
pub(crate) struct PlanModel {
    setup: Vec<String>,
    tasks: Vec<TaskModel>,
}

#[derive(FromPyObject)]
struct TaskModel {
    id: String,
    title: String,
    description: String,
    depends_on: Vec<String>,
    file_scope: Vec<String>,
    acceptance: Vec<AcceptanceModel>,
}

#[derive(FromPyObject)]
struct AcceptanceModel {
    command: String,
    timeout_seconds: f64,
}

impl From<PlanModel> for Plan {
    fn from(PlanModel { setup, tasks }: PlanModel) -> Self {
        Self { setup, tasks: tasks.into_iter().map(PlanTask::from).collect() }
    }
}

impl From<TaskModel> for PlanTask {
    fn from(task: TaskModel) -> Self {
        let TaskModel { id, title, description, depends_on, file_scope, acceptance } = task;
        let acceptance = acceptance
            .into_iter()
            .map(|AcceptanceModel { command, timeout_seconds }| Acceptance { command, timeout_seconds })
            .collect();
        Self { id, title, description, depends_on, file_scope, acceptance }
    }
}
