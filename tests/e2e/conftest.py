"""What all end to end tests share. They run the real command against the real demo server; nothing is replaced."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # helpers; pytest itself adds no folder in this import mode

from command import DemoServer, Sandbox


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
