"""Programs of others that the voices need: where `make voices` puts them, and how they are started and ended."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

__all__ = ["AGENT_SDK", "AIMOCK", "PYTHON", "call", "need", "running"]

_HOME = Path(__file__).parents[2] / "target" / "voices"
PYTHON = _HOME / "python" / "bin" / "python"
"""The interpreter of the environment that has llmock."""
AGENT_SDK = _HOME / "agent-sdk" / "bin" / "python"
"""The interpreter of the environment that has claude-agent-sdk, where that was asked for."""
AIMOCK = _HOME / "node" / "node_modules" / "@copilotkit" / "aimock"

_SECONDS = 60.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def need(program: Path, name: str) -> None:
    """Skip the module if a peer was not installed."""
    if not program.exists():
        pytest.skip(f"{name} is not installed: make voices", allow_module_level=True)


@contextlib.contextmanager
def running(arguments: Sequence[object], *, log: Path, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run a server in a process of its own; gives the first line that it prints and ends it.

    Args:
        arguments: Its command line.
        log: Where its complaints go.
        environment: Added to ours.
    """
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [str(argument) for argument in arguments],
            stdin=subprocess.PIPE,  # both peers are told to end with it, so that they do not outlive us
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **(environment or {})},
        )
    assert process.stdout is not None
    try:
        first = process.stdout.readline().strip()
        assert first, f"it did not start: {log.read_text()}"
        yield first
    finally:
        process.kill()
        process.wait()


def call(url: str, body: object = None, *, method: str | None = None) -> Any:
    """Send a request to a peer's own interface; returns its JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    with _DIRECT.open(request, timeout=_SECONDS) as response:
        return json.loads(response.read() or b"null")
