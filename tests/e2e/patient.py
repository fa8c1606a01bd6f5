"""An executor that waits until a test lets it go on, and what goes with it; see the fixture ``held``."""

from __future__ import annotations

from command import Running, Sandbox

__all__ = ["PATIENT", "go_on", "run_of"]

PATIENT = '''
import asyncio
from pathlib import Path
from mnemosyne import AgentExecutionMixin, create_agent

HERE = Path(__file__).parent


class Patient(AgentExecutionMixin):
    """Says that it was reached, and works only when the gate is open."""

    async def execute_work(self, work):
        (HERE / "reached").touch()
        while not (HERE / "open").exists():
            await asyncio.sleep(0.02)
        return await create_agent("executor", self.config).execute_work(work)
'''


def go_on(sandbox: Sandbox) -> None:
    """Open the gate."""
    (sandbox.root / "open").touch()


def run_of(running: Running) -> str:
    """The id of the run that a command has begun."""
    return str(running.event("run_submitted")["run"])
