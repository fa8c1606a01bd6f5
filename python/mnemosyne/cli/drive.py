"""Working on a run from the command line: start or resume it, show it as it happens, stop it well.

The first Ctrl-C (or SIGTERM) drains: nothing new is begun, what runs may end, the run is left to be resumed. The second
one stops at once, which is safe since everything that was done is in the store (DUR-2) and the guard ends the children.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, cast

from mnemosyne.cli.hints import resume_command, with_store
from mnemosyne.errors import MnemosyneError

if TYPE_CHECKING:
    from typing import Self

    from pydantic import SecretStr

    from mnemosyne.cli.options import Options
    from mnemosyne.cli.output import Output
    from mnemosyne.cli.summary import Summary
    from mnemosyne.models import AgentRole
    from mnemosyne.orchestra import Orchestra, Run, RunResult

__all__ = ["Job", "Setting", "drive", "finished_summary", "signal_handlers"]

_DRAIN_SECONDS = 30.0
"""How long the first signal waits for work under way. A turn seldom takes longer; what is cut off is asked again."""


@dataclass(frozen=True)
class Setting:
    """How runs are worked on by this process."""

    store: Path
    agents: Mapping[AgentRole, str]
    model: str | None
    base_url: str | None
    api_key: SecretStr | None
    max_concurrent: int

    def orchestra(self) -> Orchestra:
        """Return the orchestra that plays them, not yet started."""
        from mnemosyne.bridge import AgentSpec
        from mnemosyne.orchestra import Orchestra

        return Orchestra(
            store=self.store,
            agents={role: AgentSpec(source=source) for role, source in self.agents.items()},
            model=self.model,
            base_url=self.base_url,
            api_key=self.api_key,
            max_concurrent=self.max_concurrent,
        )


@dataclass(frozen=True)
class Job(Setting):
    """A run to be worked on by this process."""

    start: Callable[[Orchestra], Awaitable[Run]]
    """Submits or resumes it."""
    resumed_after: int | None = None
    """Sequence of the last event before it is resumed; None for a new run."""


def drive(job: Job, options: Options, output: Output) -> int:
    """Work on a run until it ends or is stopped; returns the exit code."""
    return asyncio.run(_drive(job, options, output))


@contextlib.contextmanager
def signal_handlers(arrived: Callable[[int], object]) -> Iterator[None]:
    """Hand Ctrl-C and SIGTERM to ``arrived`` on the running loop."""
    loop = asyncio.get_running_loop()
    # Put back at the end: the loop itself would leave SIGTERM to kill us between the last event and the exit.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        loop.add_signal_handler(number, arrived, number)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


def finished_summary(result: RunResult, options: Options) -> Summary:
    """Return the summary of a run, with a resume command that has the flags which it needs here."""
    summary = cast("Summary", dict(result.summary()))
    if summary["resume"]:
        plain, summary["resume"] = summary["resume"], resume_command(result.id, options)
        if summary["error"] and summary["error"]["hint"] == plain:
            summary["error"] = {**summary["error"], "hint": summary["resume"]}
    if summary["error"]:
        summary["error"] = {**summary["error"], "hint": with_store(summary["error"]["hint"], options.store)}
    return summary


async def _drive(job: Job, options: Options, output: Output) -> int:
    with _Signals(output) as signals:
        try:
            async with job.orchestra() as orchestra, _window(job, options, output, orchestra):
                run = await job.start(orchestra)
                output.about.run = run.id
                output.about.resume = resume_command(run.id, options)
                output.began()
                signals.drain_with(orchestra)
                result = await _follow(run, job, output)
        except asyncio.CancelledError:
            if signals.exit_code is None:
                raise
            return output.interrupted(signals.exit_code)
    summary = finished_summary(result, options)
    stopped = signals.exit_code is not None and summary["state"] == "interrupted"
    if stopped:
        summary["exit_code"] = signals.exit_code or summary["exit_code"]
    output.summary(summary)
    if summary["error"] and not stopped:  # who pressed Ctrl-C need not be told why it stopped
        output.error(summary["error"])
    return summary["exit_code"]


@contextlib.asynccontextmanager
async def _window(job: Job, options: Options, output: Output, orchestra: Orchestra) -> AsyncIterator[None]:
    """The window, where it is asked for; open as long as the run is worked on."""
    if not options.serve:
        yield
        return
    from mnemosyne.window import Window

    async def this_one() -> Orchestra:
        return orchestra

    async with Window(job.store, options.window_port, this_one) as window:
        output.note(f"window {window.url}  token {window.token_file}")
        yield


async def _follow(run: Run, job: Job, output: Output) -> RunResult:
    # What agents of the new boot do before the run is taken over belongs to nobody's stream.
    begun = job.resumed_after is None
    async for event in run.events(since=job.resumed_after or 0):
        begun = begun or event.kind == "run_resumed"
        if begun:
            output.event(event)
    return await run.result()


class _Signals:
    """Ctrl-C and SIGTERM while a run is worked on.

    Attributes:
        exit_code: 130 or 143 once a signal came, else None.
    """

    def __init__(self, output: Output) -> None:
        self.exit_code: int | None = None
        self._output = output
        self._handlers = signal_handlers(self._arrived)
        self._work = asyncio.current_task()
        self._orchestra: Orchestra | None = None
        self._draining: asyncio.Task[None] | None = None
        """Kept, since the loop itself holds tasks only weakly."""

    def __enter__(self) -> Self:
        self._handlers.__enter__()
        return self

    def __exit__(
        self, type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handlers.__exit__(type, error, trace)

    def drain_with(self, orchestra: Orchestra) -> None:
        """From now on there is a run, so that the first signal drains instead of giving up."""
        self._orchestra = orchestra

    def _arrived(self, number: int) -> None:
        if self.exit_code is not None:
            self._stop_at_once()
        self.exit_code = 128 + number
        if self._orchestra is None:
            self._give_up()
            return
        self._output.note(f"stopping: waiting up to {_DRAIN_SECONDS:.0f} s for work under way; again to stop at once")
        self._draining = asyncio.get_running_loop().create_task(self._drain(self._orchestra))

    async def _drain(self, orchestra: Orchestra) -> None:
        try:
            await orchestra.drain(_DRAIN_SECONDS)
        except MnemosyneError as problem:
            self._output.error(problem)
            self._give_up()

    def _give_up(self) -> None:
        if self._work is not None:
            self._work.cancel()

    def _stop_at_once(self) -> None:
        code = self._output.interrupted(self.exit_code or 130)
        self._output.flush()
        # Nothing that Python or an agent still wants to tidy up may delay this: the second Ctrl-C is meant.
        os._exit(code)
