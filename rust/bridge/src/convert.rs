//! JSON values to Python objects and back, without text in between. Runs attached, on the thread that asked.

use pyo3::exceptions::{PyTypeError, PyValueError};
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
        Value::Object(entries) => {
            let dict = PyDict::new(py);
            for (key, entry) in entries {
                dict.set_item(key, to_python(py, entry)?)?;
            }
            dict.into_any()
        }
    })
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

/// Reads a Python object as JSON.
///
/// # Errors
/// `TypeError` or `ValueError` naming the path of what is no JSON: bytes, NaN, an integer beyond 64 bits, a key that is
/// no text, a value that is nested too deeply.
pub(crate) fn from_python(object: &Bound<'_, PyAny>) -> PyResult<Value> {
    read(object, &mut Vec::new())
}

fn read(object: &Bound<'_, PyAny>, path: &mut Vec<String>) -> PyResult<Value> {
    if path.len() > MAX_DEPTH {
        return Err(PyValueError::new_err(format!("{} is nested too deeply", shown(path))));
    }
    if object.is_none() {
        return Ok(Value::Null);
    }
    if let Ok(flag) = object.cast::<PyBool>() {
        return Ok(Value::Bool(flag.is_true()));
    }
    if let Ok(text) = object.cast::<PyString>() {
        return Ok(Value::String(text.to_cow()?.into_owned()));
    }
    if object.cast::<PyInt>().is_ok() {
        if let Ok(value) = object.extract::<i64>() {
            return Ok(Value::from(value));
        }
        let value = object.extract::<u64>();
        return value
            .map(Value::from)
            .map_err(|_| PyValueError::new_err(format!("{} is an integer beyond 64 bits", shown(path))));
    }
    if let Ok(float) = object.cast::<PyFloat>() {
        let number = Number::from_f64(float.value());
        return number.map(Value::Number).ok_or_else(|| {
            PyValueError::new_err(format!("{} is {}, which JSON has no word for", shown(path), float.value()))
        });
    }
    if let Ok(dict) = object.cast::<PyDict>() {
        return read_dict(dict, path);
    }
    if object.cast::<PyList>().is_ok() || object.cast::<PyTuple>().is_ok() {
        let mut items = Vec::new();
        for (index, item) in object.try_iter()?.enumerate() {
            path.push(index.to_string());
            items.push(read(&item?, path)?);
            path.pop();
        }
        return Ok(Value::Array(items));
    }
    let name = object.get_type().name()?.to_string();
    Err(PyTypeError::new_err(format!("{} is of type {name}, which is no JSON value", shown(path))))
}

fn read_dict(dict: &Bound<'_, PyDict>, path: &mut Vec<String>) -> PyResult<Value> {
    let mut entries = Map::new();
    for (key, entry) in dict.iter() {
        let Ok(key) = key.cast::<PyString>() else {
            return Err(PyTypeError::new_err(format!("{} has a key that is no text", shown(path))));
        };
        let key = key.to_cow()?.into_owned();
        path.push(key.clone());
        entries.insert(key, read(&entry, path)?);
        path.pop();
    }
    Ok(Value::Object(entries))
}

fn shown(path: &[String]) -> String {
    if path.is_empty() { "the value".to_owned() } else { format!("the value at {}", path.join(".")) }
}
