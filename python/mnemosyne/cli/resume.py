"""``mnemosyne resume``: find the run that is meant, refuse what cannot be resumed, go on as it was started."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mnemosyne.cli import inputs
from mnemosyne.cli.drive import Job, drive, finished_summary
from mnemosyne.cli.runs import find_run, known_runs, list_them, until_state
from mnemosyne.errors import InvalidInput

if TYPE_CHECKING:
    from mnemosyne.cli.options import Options
    from mnemosyne.cli.output import Output
    from mnemosyne.models import Budget
    from mnemosyne.orchestra import Orchestra, Run, RunOverview, RunResult

__all__ = ["job_of", "last_sequence", "refuse_living", "resume"]

_ENDED = ("done", "failed", "cancelled")


def resume(options: Options, output: Output) -> int:
    """Run the verb.

    Raises:
        InvalidInput: There is no such run (MN-0110), it lives (MN-0112), it has ended (MN-0116), or it is not clear
            which one is meant (MN-0118).
    """
    store = inputs.store_path(options)
    run, last = asyncio.run(_choose(store, options, output))
    if run.alive and run.state == "paused":
        return _unpause(store, run, options, output)
    _check(run)

    async def start(orchestra: Orchestra, budget: Budget | None) -> Run:
        return await orchestra.resume(run.id, budget=budget)

    return drive(job_of(store, run, last, options, output, start), options, output)


def _unpause(store: Path, run: RunOverview, options: Options, output: Output) -> int:
    """A paused run goes on where it is: its process is told."""

    async def unpause() -> RunResult:
        from mnemosyne.orchestra import unpause_run

        await unpause_run(store, run.id)
        return await until_state(store, run.id, ("running", "waiting", *_ENDED))

    result = asyncio.run(unpause())
    if output.as_json:
        output.summary(finished_summary(result, options))
    else:
        output.text([f"{run.id} is {result.state}, in process {run.pid}", f"mnemosyne events {run.id} --follow"])
    return 0


async def _choose(store: Path, options: Options, output: Output) -> tuple[RunOverview, int]:
    runs = await known_runs(store)
    run = find_run(runs, options.run, store) if options.run else _only_one(runs, store, output)
    return run, await last_sequence(store, run.id)


def _only_one(runs: list[RunOverview], store: Path, output: Output) -> RunOverview:
    """The only interrupted run of the store, or else the only one of the current folder."""
    resumable = [run for run in runs if not run.alive and run.state not in _ENDED]
    if not resumable:
        raise InvalidInput(
            "there is no interrupted run", code="MN-0118", reason=f"in the store {store}", hint="mnemosyne runs"
        )
    here = [run for run in resumable if _is_here(run.workspace)]
    for candidates in (resumable, here):
        if len(candidates) == 1:
            return candidates[0]
    if not output.as_json:
        list_them(resumable, output)
    raise InvalidInput(
        f"{len(resumable)} runs are interrupted, and it is not clear which one is meant",
        code="MN-0118",
        reason=", ".join(run.id for run in resumable),
        hint=f"name one: mnemosyne resume {resumable[-1].id}",
    )


def _is_here(workspace: str) -> bool:
    return Path(workspace).resolve() == Path.cwd().resolve()


def _check(run: RunOverview) -> None:
    """Refuse early what the store would refuse: before a key is looked for or a server asked."""
    refuse_living(run)
    if run.state in _ENDED:
        raise InvalidInput(f"the run {run.id} has ended: {run.state}", code="MN-0116", hint=_after_the_end(run))


def _after_the_end(run: RunOverview) -> str:
    return f"mnemosyne show {run.id}" + (f", then: mnemosyne retry {run.id} TASK" if run.state == "failed" else "")


def refuse_living(run: RunOverview) -> None:
    """Refuse a run that a process works on.

    Raises:
        InvalidInput: There is one (MN-0112).
    """
    if run.alive:
        raise InvalidInput(
            f"the run {run.id} lives",
            code="MN-0112",
            reason=f"process {run.pid} works on it",
            hint=f"watch it: mnemosyne events {run.id} --follow, or stop it: mnemosyne cancel {run.id}",
        )


async def last_sequence(store: Path, run: str) -> int:
    """Return the sequence of a run's last event."""
    from mnemosyne.orchestra import read_events

    last = 0
    async for event in read_events(store, run, since=0, follow=False):
        last = event.sequence
    return last


def job_of(
    store: Path,
    run: RunOverview,
    last: int,
    options: Options,
    output: Output,
    start: Callable[[Orchestra, Budget | None], Awaitable[Run]],
) -> Job:
    """Return the job of going on with a run as it was begun.

    Args:
        store: The store.
        run: The run.
        last: Sequence of its last event.
        options: The command line.
        output: Told what is known of the run.
        start: Takes the run over.
    """
    model, base_url = _text(run.options.get("model")), _text(run.options.get("base_url"))
    agents = run.options.get("agents")
    sources = [f"{role}={source}" for role, source in agents.items()] if isinstance(agents, dict) else []
    if sources:
        inputs.find_modules_from_here()
    budget = inputs.read_budget(options, model)
    about = output.about
    about.model, about.demo, about.workspace = model, bool(run.options.get("demo")), run.workspace

    return Job(
        store=store,
        agents=inputs.read_agents(sources),
        model=model,
        base_url=base_url,
        api_key=inputs.read_key(options.api_key_file, base_url, model),
        max_concurrent=_whole(run.options.get("max_concurrent"), options.max_concurrent),
        start=lambda orchestra: start(orchestra, budget),
        resumed_after=last,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and value > 0 else otherwise
