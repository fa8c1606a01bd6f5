"""Start the demo server as a child of the guard, so that it ends with the run, however the run ends (KILL-2)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnemosyne.guard import Guard, Spawned

__all__ = ["SERVER_VARIABLE", "configure", "start_server"]

SERVER_VARIABLE = "MNEMOSYNE_DEMO_SERVER"
"""Base URL of a demo server that runs already and outlives the run, as that of ``demo --kill`` does. Not in the options
of the run: resumed without it, the run has a server of its own again."""

_PACKAGES = Path(__file__).resolve().parents[2]

_faults: Path | None = None


def configure(*, faults: Path | None) -> None:
    """Choose the fault script of the servers that this process starts from now on."""
    global _faults
    _faults = faults


async def start_server(guard: Guard, *, log: Path | None = None) -> tuple[str, Spawned]:
    """Start the server in a process of its own and wait until it listens.

    Args:
        guard: Owns the process, and ends it.
        log: Gets a JSON line per request.

    Returns:
        Its base URL, ``http://127.0.0.1:PORT``, and the handle that stops it.

    Raises:
        EnvironmentProblem: It did not come up.
    """
    # -P: a module in the current folder must not shadow ours. -S: only the standard library is used, so start faster.
    arguments = [guard.interpreter, "-P", "-S", "-m", "mnemosyne.demo.server", "--port", "0"]
    if log is not None:
        arguments += ["--log", str(log.absolute())]
    if _faults is not None:
        arguments += ["--faults", str(_faults.absolute())]
    environment = guard.environment() | {"PYTHONPATH": str(_PACKAGES)}
    spawned = await guard.spawn(arguments, cwd=Path("/"), env=environment)
    return spawned.first_line, spawned
