"""``mnemosyne retry``: a person gives a task that failed new attempts, with a word of guidance."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mnemosyne.cli import inputs
from mnemosyne.cli.drive import drive
from mnemosyne.cli.resume import job_of, last_sequence, refuse_living
from mnemosyne.cli.runs import find_run, known_runs

if TYPE_CHECKING:
    from pathlib import Path

    from mnemosyne.cli.options import Options
    from mnemosyne.cli.output import Output
    from mnemosyne.models import Budget
    from mnemosyne.orchestra import Orchestra, Run, RunOverview

__all__ = ["retry"]


def retry(options: Options, output: Output) -> int:
    """Run the verb.

    Raises:
        InvalidInput: There is no such run (MN-0110) or task (MN-0121), the run lives (MN-0112) or was cancelled
            (MN-0116), the task did not fail (MN-0122), or the note cannot be read (MN-0102).
    """
    assert options.run is not None
    assert options.task is not None  # argparse requires both
    run_id, task = options.run, options.task
    note = None if options.note is None else inputs.read_note(options.note)
    store = inputs.store_path(options)
    run, last = asyncio.run(_find(store, run_id))
    refuse_living(run)

    async def start(orchestra: Orchestra, budget: Budget | None) -> Run:
        return await orchestra.retry(run_id, task, note=note, budget=budget)

    return drive(job_of(store, run, last, options, output, start), options, output)


async def _find(store: Path, run_id: str) -> tuple[RunOverview, int]:
    run = find_run(await known_runs(store), run_id, store)
    return run, await last_sequence(store, run.id)
