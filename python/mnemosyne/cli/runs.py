"""``mnemosyne runs``, ``show``, ``events``, ``cancel``, ``pause``: asking about runs, also those of other processes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mnemosyne.cli.conversation import show_conversation
from mnemosyne.cli.drive import finished_summary
from mnemosyne.cli.evidence import show_evidence
from mnemosyne.cli.inputs import store_path
from mnemosyne.cli.style import one_line
from mnemosyne.errors import InvalidInput

if TYPE_CHECKING:
    from mnemosyne.cli.options import Options
    from mnemosyne.cli.output import Output
    from mnemosyne.orchestra import RunOverview, RunResult

__all__ = ["cancel", "events", "find_run", "known_runs", "list_them", "pause", "runs", "show", "until_state"]

_ENDED = ("done", "failed", "cancelled")
_WIDE = 120
"""Characters from which a list of runs shows their phases and goals too."""
_LOOK_SECONDS = 0.1
_LOOKS = 50
"""How often ``cancel`` and ``pause`` look whether they were obeyed. A process looks for commands every 0.2 s."""


def runs(options: Options, output: Output) -> int:
    """List the runs of the store, oldest first."""
    store = store_path(options)
    found = asyncio.run(known_runs(store))
    if not found:
        output.text([f"there are no runs in {store}"])
    list_them(found, output)
    return 0


def show(options: Options, output: Output) -> int:
    """Show one run. That it failed is the answer, not an error: exit code 0."""
    if options.conversation is not None:
        return show_conversation(options, output, _named(options), options.conversation)
    if options.evidence is not None:
        return show_evidence(options, output, _named(options), options.evidence)
    result = asyncio.run(_told(store_path(options), _named(options), output))
    output.summary(finished_summary(result, options), with_error=True)
    return 0


def events(options: Options, output: Output) -> int:
    """Show the events of one run, and with ``--follow`` those to come until it ends."""
    store, run = store_path(options), _named(options)
    asyncio.run(_found(store, run))
    try:
        asyncio.run(_print_events(store, run, options, output))
        exit_code = 0
    except KeyboardInterrupt:
        exit_code = 130
    if output.as_json:
        # Watching was interrupted, not the run: the summary says how the run is.
        output.summary(finished_summary(asyncio.run(_result(store, run)), options))
    return exit_code


def cancel(options: Options, output: Output) -> int:
    """Cancel a run. Says so only when it has ended; a process that does not react is named."""
    store, run = store_path(options), _named(options)
    result = asyncio.run(_cancel(store, run))
    if output.as_json:
        output.summary(finished_summary(result, options))
    elif result.state in _ENDED:
        output.text([f"{run} is {result.state}"])
    else:
        output.text([f"{run} is asked to end; it is {result.state} now", f"mnemosyne show {run}"])
    return 0


def pause(options: Options, output: Output) -> int:
    """Pause a run of another process. Says so only when it is paused."""
    store, run = store_path(options), _named(options)
    result = asyncio.run(_pause(store, run))
    if output.as_json:
        output.summary(finished_summary(result, options))
    elif result.state == "paused":
        output.text([f"{run} is paused; what is under way is finished", f"to go on: mnemosyne resume {run}"])
    else:
        output.text([f"{run} is asked to pause; it is {result.state} now", f"mnemosyne show {run}"])
    return 0


async def until_state(store: Path, run: str, states: Sequence[str]) -> RunResult:
    """Wait until the process that works on a run has obeyed, but not for ever."""
    from mnemosyne.orchestra import show_run

    for _ in range(_LOOKS):
        result = await show_run(store, run)
        if result.state in states:
            return result
        await asyncio.sleep(_LOOK_SECONDS)
    return await show_run(store, run)


async def _pause(store: Path, run: str) -> RunResult:
    await _found(store, run)
    from mnemosyne.orchestra import pause_run

    await pause_run(store, run, "requested")
    return await until_state(store, run, ("paused", *_ENDED))


async def known_runs(store: Path) -> list[RunOverview]:
    """Return the runs of a store; none where there is no store, and asking does not make one."""
    if not store.exists():
        return []  # store_path() refused what is there and cannot be opened
    from mnemosyne.orchestra import list_runs

    return await list_runs(store)


def find_run(found: Sequence[RunOverview], run: str, store: Path) -> RunOverview:
    """Return the run of that id.

    Raises:
        InvalidInput: There is none (MN-0110).
    """
    for known in found:
        if known.id == run:
            return known
    raise InvalidInput(
        f"there is no run {run!r}", code="MN-0110", reason=f"in the store {store}", hint="mnemosyne runs"
    )


def list_them(found: Sequence[RunOverview], output: Output) -> None:
    """Show a list of runs, one line each."""
    rows = [_cells(run, wide=output.width >= _WIDE) for run in found]
    widths = [max(len(text) for text, _ in column) + 2 for column in zip(*rows, strict=True)][:-1]
    for run, cells in zip(found, rows, strict=True):
        placed = zip(cells, [*widths, 0], strict=True)
        output.row("run", _form(run), [(text, width, colour) for (text, colour), width in placed])


def _cells(run: RunOverview, *, wide: bool) -> list[tuple[str, str]]:
    state = f"{run.state} (pid {run.pid})" if run.alive and run.pid else run.state
    begun = f"{run.created_at[:16].replace('T', ' ')} UTC"
    cells = [(run.id, "strong"), (state, ""), (begun, "dim"), (one_line(run.workspace), "")]
    return [*cells, (run.phase, ""), (one_line(run.prompt or "from a plan"), "dim")] if wide else cells


async def _found(store: Path, run: str) -> RunOverview:
    return find_run(await known_runs(store), run, store)


async def _result(store: Path, run: str) -> RunResult:
    await _found(store, run)
    from mnemosyne.orchestra import show_run

    return await show_run(store, run)


async def _told(store: Path, run: str, output: Output) -> RunResult:
    """The result, with the events remembered that say why attempts came to nothing."""
    result = await _result(store, run)
    from mnemosyne.orchestra import read_events

    async for event in read_events(store, run, since=0, follow=False):
        output.remember(event)
    return result


async def _print_events(store: Path, run: str, options: Options, output: Output) -> None:
    from mnemosyne.orchestra import read_events

    async for event in read_events(store, run, since=options.since, follow=options.follow):
        output.full_event(event)
        if output.deaf:
            return


async def _cancel(store: Path, run: str) -> RunResult:
    await _found(store, run)
    from mnemosyne.orchestra import cancel_run

    await cancel_run(store, run, "requested")
    return await until_state(store, run, _ENDED)


def _named(options: Options) -> str:
    assert options.run is not None  # argparse requires it
    return options.run


def _form(run: RunOverview) -> dict[str, object]:
    return {
        "run": run.id,
        "state": run.state,
        "pid": run.pid if run.alive else None,
        "phase": run.phase,
        "created_at": run.created_at,
        "workspace": run.workspace,
        "prompt": run.prompt,
    }
