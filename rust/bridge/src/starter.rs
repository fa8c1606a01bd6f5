//! How direct work becomes a task without a way through Python's tick: no tuple for the message, no frame that unpacks it,
//! no new dict for the options of each task. Where each item has a task, as those have that wait, the loop's thread executed
//! 22,800 instructions for one this way on Python 3.13, and 24,400 with the tick in Python; 23,200 and 26,100 on 3.12. A task
//! goes on by itself to what it can do beside its first item ([`next_direct`](crate::port::Port)).
//!
//! Only where a task does its first step by itself: on 3.11 a loop of ours lends it a hand in Python (`eager.py`), and a way
//! from here through that is longer than the one through the tick.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

pub(crate) struct Starter {
    /// The coroutine function that does the work: `(slot, seat, work, context)`.
    pub(crate) work: Py<PyAny>,
    /// Makes a task of a coroutine, with the options, and does its first step.
    pub(crate) task: Py<PyAny>,
    pub(crate) options: Py<PyDict>,
    /// Makes an empty context.
    pub(crate) context: Py<PyAny>,
}

impl Starter {
    /// Does the first step of a task, which begins with this item; returns the task, if that was not the last one.
    ///
    /// # Errors
    /// The task could not be made: no memory, too deep a recursion. What the agent raises is in the task.
    pub(crate) fn start<'py>(
        &self,
        py: Python<'py>,
        slot: u64,
        seat: u64,
        work: Bound<'py, PyDict>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let context = self.context.bind(py).call0()?;
        let coroutine = self.work.bind(py).call1((slot, seat, work, &context))?;
        let options = self.options.bind(py);
        let set = options.set_item(intern!(py, "context"), context);
        let made = set.and_then(|()| self.task.bind(py).call((&coroutine,), Some(options)));
        // What one item sets must not live on in here.
        options.set_item(intern!(py, "context"), py.None())?;
        match made {
            Ok(task) if task.call_method0(intern!(py, "done"))?.is_truthy()? => Ok(None),
            Ok(task) => Ok(Some(task)),
            Err(error) => {
                coroutine.call_method0(intern!(py, "close"))?;
                Err(error)
            }
        }
    }
}
