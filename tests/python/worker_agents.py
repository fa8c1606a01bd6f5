"""Agents for worker processes: they are imported there by name, and keep what they have to remember in files."""

# ruff: noqa: ASYNC220, ASYNC221 - agents that misbehave on purpose

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mnemosyne import AgentExecutionMixin

# A daemon with a session of its own, as `daemon(3)` makes it; it writes its process id.
DAEMON = """
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
with open(sys.argv[1] + ".new", "w") as file: file.write(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(300)
"""


def count(file: str) -> int:
    """Append a line to a file, and return how many it has."""
    with Path(file).open("a") as lines:
        lines.write(f"{os.getpid()}\n")
    return len(Path(file).read_text().splitlines())


def hang_in_c() -> None:
    """Hold the interpreter in C code until the process is killed."""
    ctypes.PyDLL(None).sleep(3600)


class Does(AgentExecutionMixin):
    """Does what the context says."""

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        context = work_dict["context"]
        return await getattr(self, context["do"])(context)

    async def echo(self, context: dict[str, Any]) -> dict[str, Any]:
        return {"success": True, "data": {"value": context.get("value"), "pid": os.getpid()}}

    async def see(self, context: dict[str, Any]) -> dict[str, Any]:
        seen = {"key": self.config["api_key"], "variable": os.environ["WORKER_TEST"], "folder": os.getcwd()}
        return {"success": True, "data": {**seen, "item": self.context.item.id, "agent": self.context.agent_id}}

    async def fail(self, context: dict[str, Any]) -> dict[str, Any]:
        error = LookupError("nothing by that name")
        error.add_note("looked everywhere")
        raise error

    async def give(self, context: dict[str, Any]) -> dict[str, Any]:
        deep: list[Any] = []
        for _ in range(150):
            deep = [deep]
        given = {"bytes": b"x", "nan": float("nan"), "big": 2**64, "half": "\ud800", "deep": deep}
        return {"success": True, "data": {"answer": given[context["what"]]}}

    async def exit(self, context: dict[str, Any]) -> dict[str, Any]:
        print("the last words", file=sys.stderr)
        os._exit(context.get("code", 1))

    async def log(self, context: dict[str, Any]) -> dict[str, Any]:
        logging.getLogger("tests.worker").warning("said in %s", "the worker")
        print("this is not for the user's standard output")
        return {"success": True}

    async def hang_first(self, context: dict[str, Any]) -> dict[str, Any]:
        await self.context.step("before", lambda: self._counted(context["steps"]))
        if count(context["file"]) == 1:
            hang_in_c()
        return {"success": True, "data": {"epoch": self.context.epoch, "attempt": self.context.attempt}}

    async def _counted(self, file: str) -> int:
        return count(file)

    async def stubborn(self, context: dict[str, Any]) -> dict[str, Any]:
        """Ignores its first cancel, and comes with a result when the process is told to end."""
        if count(context["file"]) > 1:
            return {"success": True, "data": {"by": "another"}}
        told = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: told.done() or told.set_result(None))
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        await told
        return {"success": True, "data": {"by": "the stubborn one"}}

    async def deaf(self, context: dict[str, Any]) -> dict[str, Any]:
        """Ignores every cancel, twice, until a third says where it is."""
        if count(context["file"]) > 2:
            return {"success": True, "data": {"pid": os.getpid()}}
        while len(Path(context["file"]).read_text().splitlines()) < 3:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)
        return {"success": False}

    async def eat(self, context: dict[str, Any]) -> dict[str, Any]:
        return {"success": True, "data": {"bytes": len(bytearray(context["bytes"]))}}

    async def spin(self, context: dict[str, Any]) -> dict[str, Any]:
        while True:
            pass

    async def daemon(self, context: dict[str, Any]) -> dict[str, Any]:
        subprocess.run([sys.executable, "-c", DAEMON, context["file"]], check=True)
        return await self.wait(context)

    async def wait(self, context: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(3600)
        return {"success": True}


class Plain(AgentExecutionMixin):
    """A plain function, which may block its thread and nothing else."""

    def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        context = work_dict["context"]
        if context.get("file") and count(context["file"]) == 1:
            time.sleep(3600)
        main = threading.current_thread() is threading.main_thread()
        return {"success": True, "data": {"main": main, "item": self.context.item.id}}


class Burns(AgentExecutionMixin):
    """An executor whose item holds a command; one of them then hangs in C code, with all that its process works on."""

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        marker, begun = self.config["marker"], str(self.config["begun"])
        if count(begun) == 1:
            subprocess.Popen(["sleep", str(marker)])
            while len(Path(begun).read_text().splitlines()) < int(str(self.config["items"])):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            # Written without a step of the loop before the hang: a cancel that comes after this file finds it hanging.
            Path(f"{begun}.hangs").touch()
            hang_in_c()
        assert self.context.tools is not None
        await self.context.tools.run("run_command", {"command": f"exec sleep {marker}"})
        return {"success": True}


class Listens(AgentExecutionMixin):
    """Asks its model something; without a server it waits and says nothing."""

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        from mnemosyne.llm import ClaudeSession, Client, SessionOptions

        url = work_dict["context"].get("url")
        if url is None:
            await asyncio.sleep(3600)
        client = Client({"base_url": url, "api_key": "none"})
        options = SessionOptions(model="demo", system="")
        async with ClaudeSession(client, self.context, options) as session:
            await session.query("tell me a long story")
            async for _ in session.receive_response():
                pass
        await client.close()
        return {"success": True}


class Packs(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        return {"success": True, "data": {"pack": "nothing"}}


class Waits(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(3600)
        return {"success": True}
