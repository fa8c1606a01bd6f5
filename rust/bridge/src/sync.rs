//! The lock of this crate.

pub(crate) use std::sync::{Mutex, MutexGuard};

use std::sync::PoisonError;

/// A poisoned lock here holds nothing half-done: every critical section is one push, swap or insert.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
