//! The extension module `mnemosyne._core`: the bridge's `register`, and the window's face.

mod window;

use pyo3::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[pymodule]
#[pyo3(name = "_core")]
fn core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    mnemosyne_bridge::register(module)?;
    module.add_class::<window::Window>()
}
