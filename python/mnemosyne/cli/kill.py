"""``mnemosyne demo --kill N``: a run that is killed N times before the reader's eyes, and resumed each time.

This process only watches. The run is a child of its guard, so nothing of it outlives us (KILL-2), and ``kill -9`` hits
all of it at once, as a power cut would: the process, its own guard, its commands. The demo's server is a child of ours
instead, since a model's server does not die with its clients; its log is the evidence of what was asked how often.

When to kill is decided by what is seen to happen, never by a clock: after so many finished steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mnemosyne.cli.drive import signal_handlers
from mnemosyne.cli.inputs import store_path
from mnemosyne.errors import InvalidInput, MnemosyneError

if TYPE_CHECKING:
    from mnemosyne.cli.options import Options
    from mnemosyne.cli.output import Output
    from mnemosyne.cli.summary import ErrorForm, KillRequests, Summary
    from mnemosyne.guard import CommandResult, Guard
    from mnemosyne.models import Event

__all__ = ["STEPS", "killed_demo"]

STEPS = 100
"""Steps of the sample's run; a test compares. Only the moments of the kills depend on it."""

_TAG = "killed demo"
_TELL_PID = 'exec >"$0" && echo $$ && exec "$@"'
"""The process id comes first: the guard tells it only of commands whose output it reads itself."""
_LONGEST_LINE = 64_000_000
"""Bytes; a summary with its evidence is one line."""
_RUN_SECONDS = 24 * 3600.0
_LOG_SECONDS = 5.0
"""The server writes a line of its log just after the end of the answer has gone out."""
_OWN_FLAGS = frozenset({"command", "debug", "faults", "handler", "json", "kill", "quiet", "store", "workspace"})
"""What the child gets otherwise, or not at all."""


def killed_demo(options: Options, output: Output, place: Callable[[], Path]) -> int:
    """Run the demo, kill it ``options.kill`` times and resume it as often.

    Args:
        options: The command line.
        output: Where to show it.
        place: Returns the workspace, and makes it.

    Raises:
        InvalidInput: The server is somebody else's, so its log cannot be read (MN-0115).
        MnemosyneError: The run ended without a summary (MN-0162).
    """
    if options.base_url is not None or options.model not in (None, "demo"):
        raise InvalidInput(
            "--kill is for the demo's own server and model",
            code="MN-0115",
            reason="only its log can show that no request was paid for twice",
            hint=f"mnemosyne demo --kill {options.kill}",
        )
    store = store_path(options)
    output.about.model, output.about.demo, output.about.workspace = "demo", True, str(place())
    return asyncio.run(_Show(options, output, store).play())


class _Show:
    """One killed run, from the server's start to the proof."""

    def __init__(self, options: Options, output: Output, store: Path) -> None:
        self._options = options
        self._output = output
        self._store = store
        self._kills = 0
        self._steps: set[tuple[object, ...]] = set()
        """Finished steps, by item, attempt and number."""
        self._last_sequence = 0
        self._signalled: int | None = None
        """The exit code of the first signal; from then on nothing is killed or resumed any more."""
        self._pid: int | None = None
        self._work: asyncio.Task[Any] | None = None

    async def play(self) -> int:
        """Start the server, and show the run to its end; returns the exit code."""
        self._work = asyncio.current_task()
        with signal_handlers(self._arrived):
            try:
                return await self._with_server()
            except asyncio.CancelledError:
                if self._signalled is None:
                    raise
                return self._output.interrupted(self._signalled)

    async def _with_server(self) -> int:
        from mnemosyne import guard
        from mnemosyne.demo.launch import SERVER_VARIABLE, start_server

        keeper = guard.shared()
        scratch = Path(keeper.environment()["TMPDIR"])  # the guard removes it, however we end
        log = scratch / "requests.ndjson"
        url, server = await start_server(keeper, log=log)
        environment = dict(os.environ) | {SERVER_VARIABLE: url}
        try:
            summary = await self._play(lambda words: _Boot.start(keeper, scratch, words, environment))
            return await self._end(summary, log)
        finally:
            await keeper.kill(_TAG)
            await server.stop()

    async def _play(self, start: Callable[[Sequence[str]], Awaitable[_Boot]]) -> Summary:
        wanted = self._options.kill or 0
        words = ["demo", *self._flags(), f"--workspace={self._output.about.workspace}", f"--store={self._store}"]
        for number in range(1, wanted + 1):
            summary = await self._watch(await start(words), kill_after=-(-number * STEPS // (wanted + 1)))
            if summary is not None:
                return summary
            self._kills = number
            words = [
                "resume",
                str(self._output.about.run),
                *self._flags(only={"api_key_file"}),
                f"--store={self._store}",
            ]
        summary = await self._watch(await start(words), kill_after=None)
        assert summary is not None
        return summary

    def _flags(self, only: set[str] | None = None) -> Iterator[str]:
        """The flags of this command that the child needs as well."""
        for name, value in sorted(vars(self._options).items()):
            if name in _OWN_FLAGS or (only is not None and name not in only):
                continue
            for entry in value if isinstance(value, list) else [value]:
                yield f"--{name.replace('_', '-')}={entry}"

    async def _watch(self, boot: _Boot, kill_after: int | None) -> Summary | None:
        """Show what a process of the run does, to its end; None if it was killed."""
        self._pid = boot.pid
        summary: Summary | None = None
        async for form in boot.lines():
            if form["type"] == "summary":
                summary = cast("Summary", {key: form[key] for key in form.keys() - {"type", "schema"}})
            elif form["type"] == "event":
                self._see(form)
            if summary is None and self._is_due(kill_after):
                await self._kill(boot)
                return None
        self._pid = None
        ended = await boot.ended
        if summary is None:
            raise _no_summary(ended)
        return summary

    def _is_due(self, kill_after: int | None) -> bool:
        return kill_after is not None and self._signalled is None and len(self._steps) >= kill_after

    def _see(self, form: dict[str, Any]) -> None:
        from mnemosyne.models import Event

        event = Event.model_validate(form)
        if event.sequence <= self._last_sequence:
            return
        self._last_sequence = event.sequence
        if self._output.about.run is None and event.run is not None:
            from mnemosyne.cli.hints import resume_command

            self._output.about.run = event.run
            self._output.about.resume = resume_command(event.run, self._options)
            self._output.began()
        if event.kind == "step_finished":
            self._steps.add((event.item, event.attempt, event.data.get("number")))
        self._output.event(event)

    async def _kill(self, boot: _Boot) -> None:
        self._pid = None
        await boot.kill()
        async for form in boot.lines():
            if form["type"] == "event":
                self._see(form)
        # Committed, and not shown by the process any more.
        async for event in _events(self._store, str(self._output.about.run), self._last_sequence):
            self._see(event.model_dump(mode="json"))
        form = {
            "number": self._kills + 1,
            "of": self._options.kill,
            "run": self._output.about.run,
            "pid": boot.pid,
            "after_sequence": self._last_sequence,
            "steps": len(self._steps),
        }
        said = f"kill -9 of process {boot.pid} and all it started, {form['number']} of {form['of']}"
        self._tell("kill", form, f"{said}, after {len(self._steps)} steps")
        self._tell("resume", {"run": form["run"]}, f"mnemosyne resume {form['run']}")

    def _tell(self, kind: str, form: dict[str, object], text: str) -> None:
        if self._output.as_json or not self._output.quiet:
            self._output.row(kind, form, [(f"--- {text}", 0, "warn")])

    async def _end(self, summary: Summary, log: Path) -> int:
        requests = await _requests(self._store, self._output.about.run, log)
        summary["kill"] = {"kills": self._kills, **requests.form()}
        problem = requests.problem()
        if summary["error"] is None and problem is not None:
            summary["exit_code"] = 1
            summary["error"] = cast("ErrorForm", problem.to_dict())
        self._output.summary(summary)
        if summary["state"] == "done":
            self._output.text(["", *self._proof(requests)])
        if summary["error"] is not None and summary["exit_code"] != self._signalled:
            self._output.error(summary["error"])
        return summary["exit_code"]

    def _proof(self, requests: _Requests) -> Iterator[str]:
        wanted = self._options.kill
        ended = "" if self._kills == wanted else f" (of {wanted}: the run was done before the others)"
        yield f"killed    {_times(self._kills)} with kill -9, resumed {_times(self._kills)}{ended}"
        yield f"requests  {requests.arrived.total()} at the server, {requests.answered.total()} answers recorded"
        if requests.again:
            yield f"          sent again, since no answer was recorded: {requests.again}"
        if requests.problem() is None:
            yield f"          no request {'with a recorded answer ' if requests.again else ''}was paid for twice"

    def _arrived(self, number: int) -> None:
        first, self._signalled = self._signalled is None, self._signalled or 128 + number
        if first and self._pid is not None:
            self._output.note("stopping: waiting for work under way; again to stop at once")
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)
        elif self._work is not None:
            self._work.cancel()


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


@dataclass
class _Boot:
    """One process that works on the run."""

    pid: int
    ended: asyncio.Task[CommandResult]
    _reader: asyncio.StreamReader
    _guard: Guard

    @classmethod
    async def start(cls, guard: Guard, scratch: Path, words: Sequence[str], environment: Mapping[str, str]) -> _Boot:
        """Start ``mnemosyne`` with these words and ``--json``, as a child of ``guard``.

        Raises:
            MnemosyneError: It did not start (MN-0162).
        """
        pipe = scratch / "output"
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe, 0o600)
        reader, release = await _open_pipe(pipe)
        # -P: a module in the current folder must not shadow ours.
        argv = ["/bin/sh", "-c", _TELL_PID, str(pipe), sys.executable, "-P", "-m", "mnemosyne", *words, "--json"]
        running = guard.run(argv, cwd=Path.cwd(), env=environment, timeout=_RUN_SECONDS, tag=_TAG)
        ended = asyncio.create_task(running)
        ended.add_done_callback(lambda _: release())
        first = await reader.readline()
        release()
        if not first:
            raise _no_summary(await ended)
        return cls(int(first), ended, reader, guard)

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what it prints, until it ends; a line that it could not finish is left out."""
        while (line := await self._reader.readline()).endswith(b"\n"):
            yield json.loads(line)

    async def kill(self) -> None:
        """Kill it with all it started; returns when the last process is gone."""
        await self._guard.kill(_TAG)
        await self.ended


async def _open_pipe(path: Path) -> tuple[asyncio.StreamReader, Callable[[], None]]:
    """Open a named pipe for reading; it ends when its writer does, once the second value was called."""
    source = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    # As long as nobody writes, a pipe is at its end.
    holder = [os.open(path, os.O_WRONLY)]
    reader = asyncio.StreamReader(limit=_LONGEST_LINE)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(source, "rb"))
    return reader, lambda: os.close(holder.pop()) if holder else None


def _no_summary(ended: CommandResult) -> MnemosyneError:
    return MnemosyneError(
        "the run of the demo ended without a summary",
        code="MN-0162",
        reason=ended.stderr.decode(errors="replace").strip()[-1000:] or f"exit code {ended.exit_code}",
        hint="mnemosyne demo, without --kill, says more",
    )


@dataclass(frozen=True)
class _Requests:
    """What was asked of the server, by the log of the server and by the events of the run.

    Attributes:
        arrived: How often each request arrived, by the hash of its body.
        answered: Requests whose answer the run recorded.
        unanswered: Requests that the run began and for which it has no answer: killed, or failed by the server.
    """

    arrived: Counter[str]
    answered: Counter[str]
    unanswered: Counter[str]

    @property
    def again(self) -> int:
        """Requests that were sent once more, since there was no answer to use."""
        return sum((self.arrived - Counter(set(self.arrived))).values())

    @property
    def twice(self) -> list[str]:
        """Requests that were sent though their answer was recorded already."""
        allowed = Counter(set(self.answered)) + self.unanswered
        return sorted((self.arrived - allowed) + (self.answered - Counter(set(self.answered))))

    @property
    def unseen(self) -> list[str]:
        """Requests with a recorded answer that the log does not show: with such a log nothing is proved."""
        return sorted(set(self.answered) - set(self.arrived))

    def problem(self) -> MnemosyneError | None:
        """What is wrong with them, if anything is."""
        for found, code, said in (
            (self.twice, "MN-0163", "requests were paid for twice"),
            (self.unseen, "MN-0164", "answered requests are missing in the log of the server, so nothing is proved"),
        ):
            if found:
                reason = ", ".join(found)
                return MnemosyneError(
                    f"{len(found)} {said}", code=code, reason=reason, hint="mnemosyne events RUN --json"
                )
        return None

    def form(self) -> KillRequests:
        return {
            "requests": self.arrived.total(),
            "answers": self.answered.total(),
            "sent_again": self.again,
            "paid_twice": len(self.twice),
        }


async def _requests(store: Path, run: str | None, log: Path) -> _Requests:
    started: dict[tuple[object, ...], str] = {}
    recorded: set[tuple[object, ...]] = set()
    async for event in _events(store, str(run), since=0):
        step = (event.item, event.attempt, event.data.get("number"))
        if event.kind == "step_started" and event.data.get("request_sha256"):
            started[step] = str(event.data["request_sha256"])
        if event.kind == "step_finished" and event.data.get("state") == "finished":
            recorded.add(step)
    answered = Counter(sha256 for step, sha256 in started.items() if step in recorded)
    unanswered = Counter(sha256 for step, sha256 in started.items() if step not in recorded)
    return _Requests(await _arrived(log, set(answered)), answered, unanswered)


async def _arrived(log: Path, expected: set[str]) -> Counter[str]:
    deadline = asyncio.get_running_loop().time() + _LOG_SECONDS
    while True:
        lines = map(json.loads, log.read_text("utf-8").splitlines())
        found = Counter(line["body_sha256"] for line in lines if line["path"].split("?")[0] == "/v1/messages")
        if expected <= set(found) or asyncio.get_running_loop().time() > deadline:
            return found
        await asyncio.sleep(0.01)


async def _events(store: Path, run: str, since: int) -> AsyncIterator[Event]:
    from mnemosyne.orchestra import read_events

    async for event in read_events(store, run, since=since, follow=False):
        yield event
