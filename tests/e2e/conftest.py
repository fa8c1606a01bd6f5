"""What all end to end tests share. They run the real command against the real demo server; nothing is replaced."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # helpers; pytest itself adds no folder in this import mode

from command import DemoServer, Running, Sandbox, until
from patient import PATIENT


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("mnemosyne._core") is not None:
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="mnemosyne._core is not built: make build"))


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    """A folder, a store and a mark; at the end nothing may be left alive in it."""
    sandbox = Sandbox(tmp_path)
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    """A demo server of its own for a module."""
    server = DemoServer(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture
def held(sandbox: Sandbox, server: DemoServer) -> Running:
    """A run that waits in its first executor."""
    (sandbox.root / "patient.py").write_text(PATIENT)
    flags = ["--base-url", server.url, "--agent", "executor=patient:Patient", "--max-concurrent", "2"]
    running = sandbox.start_demo(*flags)
    until((sandbox.root / "reached").exists, f"the executor is reached: {running.errors}")
    return running
