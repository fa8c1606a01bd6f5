"""The real command in a place of its own: what it printed, what it left behind, and which processes outlived it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mnemosyne

__all__ = ["SECONDS", "DemoServer", "Finished", "Running", "Sandbox", "until"]

SECONDS = 120.0
"""Deadline for one command. Far more than it takes: a slow machine must not fail a test, a hang must."""

_PACKAGES = str(Path(mnemosyne.__file__).resolve().parents[1])
_PRIVATE = ("ANTHROPIC_", "DBUS_", "MNEMOSYNE_", "PYTHON", "XDG_")

Line = dict[str, Any]


def until(condition: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Poll until ``condition`` holds; fail with ``what`` at the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.02)


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    exit_code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Line]:
        """The lines of ``--json``; a line that is no JSON object fails the test."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def events(self) -> list[Line]:
        return [line for line in self.lines if line["type"] == "event"]

    @property
    def summary(self) -> Line:
        """The last line, which has to be a summary, and the only one."""
        lines = self.lines
        assert lines, f"nothing was printed: {self.err}"
        assert [line["type"] for line in lines].count("summary") == 1
        assert lines[-1]["type"] == "summary"
        if self.exit_code:  # `show` succeeds in showing a run that did not
            assert lines[-1]["exit_code"] == self.exit_code
        return lines[-1]


class Running:
    """A command under way, in a process group of its own."""

    def __init__(self, arguments: list[str], *, cwd: Path, environment: Mapping[str, str]) -> None:
        self._errors = (cwd / f"stderr-{uuid.uuid4().hex[:8]}").open("w+b")
        self.process = subprocess.Popen(
            arguments,
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            process_group=0,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)

    @property
    def errors(self) -> str:
        return Path(self._errors.name).read_text("utf-8")

    def text_lines(self) -> list[str]:
        """What it printed so far, whole lines."""
        return [line for line in list(self._lines) if line.endswith("\n")]

    def event(self, kind: str, **fields: object) -> Line:
        """Wait for an event of this kind with these fields, and return it."""

        def found() -> Line | None:
            for line in map(json.loads, self.text_lines()):
                if line.get("kind") == kind and all(line.get(name) == value for name, value in fields.items()):
                    return dict(line)
            assert self.process.poll() is None or self._reader.is_alive(), f"it ended first: {self.errors}"
            return None

        until(found, f"{kind} {fields}")
        event = found()
        assert event is not None
        return event

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ends_within(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def finished(self, seconds: float = SECONDS) -> Finished:
        """Wait for the end."""
        assert self.ends_within(seconds), f"it did not end within {seconds:.0f} s: {self.errors}"
        self._reader.join(SECONDS)
        return Finished(self.process.returncode, "".join(self._lines), self.errors)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._errors.close()


class Sandbox:
    """A folder with a store; everything that is started here can be found again by a mark."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = root / "state" / "store.db"
        self.workspace = root / "workspace"
        self.mark = f"mnemosyne-e2e-{uuid.uuid4().hex}"
        self._running: list[Running] = []

    def environment(self, **more: str) -> dict[str, str]:
        """The environment without anything that would change what the command does, and with the mark."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}
        own = {"PYTHONPATH": _PACKAGES, "XDG_CONFIG_HOME": str(self.root / "config"), "NO_PROXY": "127.0.0.1"}
        return {**kept, **own, "MNEMOSYNE_TEST_MARK": self.mark, **more}

    def command(self, *arguments: str) -> list[str]:
        """The words of a command on this sandbox's store."""
        # -P: only what the command itself does may make modules of the current folder importable.
        return [sys.executable, "-P", "-m", "mnemosyne", *arguments, "--store", str(self.store)]

    def start(self, *arguments: str, cwd: Path | None = None, **environment: str) -> Running:
        running = Running(self.command(*arguments), cwd=cwd or self.root, environment=self.environment(**environment))
        self._running.append(running)
        return running

    def run(self, *arguments: str, cwd: Path | None = None, **environment: str) -> Finished:
        return self.start(*arguments, cwd=cwd, **environment).finished()

    def run_python(self, program: str, seconds: float) -> subprocess.CompletedProcess[str]:
        """Run a program that somebody could have copied from a page."""
        (self.root / "example.py").write_text(program, "utf-8")
        return subprocess.run(
            [sys.executable, "example.py"],
            cwd=self.root,
            env=self.environment(MNEMOSYNE_STORE=str(self.store)),
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )

    def run_words(self, words: Sequence[str], *, given: str = "", **environment: str) -> Finished:
        """Run any program here, with something on stdin."""
        ended = subprocess.run(
            words,
            cwd=self.root,
            env=self.environment(**environment),
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        return Finished(ended.returncode, ended.stdout, ended.stderr)

    def demo(self, *arguments: str) -> Finished:
        """Run the demo in this sandbox's workspace with ``--json``."""
        return self.run("demo", "--json", "--workspace", str(self.workspace), *arguments)

    def start_demo(self, *arguments: str) -> Running:
        return self.start("demo", "--json", "--workspace", str(self.workspace), *arguments)

    def run_events(self, run: str) -> list[Line]:
        return self.run("events", run, "--json").events

    def sample_tests(self) -> subprocess.CompletedProcess[str]:
        """Run the sample's own tests in the workspace."""
        return subprocess.run(
            [sys.executable, "-m", "unittest", "discover"],
            cwd=self.workspace,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )

    def orphans(self) -> list[str]:
        """Command lines of living processes that carry the mark, or work on anything in this sandbox.

        The guard scrubs the environment of what it starts, so paths count too: in arguments and as current folder.
        """
        return [found for entry in Path("/proc").iterdir() if entry.name.isdigit() and (found := self._ours(entry))]

    def _ours(self, entry: Path) -> str:
        if int(entry.name) == os.getpid():
            return ""
        try:
            arguments, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            cwd = (entry / "cwd").readlink()
        except OSError:  # it ended while we looked, or is a zombie without a memory
            return ""
        ours = (
            self.mark.encode() in environment or str(self.root).encode() in arguments or cwd.is_relative_to(self.root)
        )
        return f"{entry.name} {arguments.decode(errors='replace')}" if ours else ""

    def close(self) -> None:
        for running in self._running:
            running.close()
        try:
            until(lambda: not self.orphans(), "everything is gone", 15)
        finally:
            for orphan in self.orphans():
                os.kill(int(orphan.split()[0]), signal.SIGKILL)


class DemoServer:
    """``mnemosyne demo serve --log``, which outlives the runs that use it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._sandbox = Sandbox(folder)
        self._log = folder / "requests.ndjson"
        self._running = self._sandbox.start("demo", "serve", "--log", str(self._log), *arguments)
        until(self._running.text_lines, "the server prints its address")
        self.url = self._running.text_lines()[0].strip()

    def seen(self) -> Counter[str]:
        """How often each request arrived, by the hash of its body."""
        return Counter(line["body_sha256"] for line in self.requests() if line["path"].split("?")[0] == "/v1/messages")

    def requests(self) -> list[Line]:
        """All that arrived, whatever it asked for."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def close(self) -> None:
        self._running.send(signal.SIGTERM)
        self._running.ends_within(10)
        self._sandbox.close()
