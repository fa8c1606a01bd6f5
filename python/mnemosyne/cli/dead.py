"""``mnemosyne dead``, ``dead requeue`` and ``dead discard``: items that took their agents down too often."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from mnemosyne.cli.inputs import store_path
from mnemosyne.cli.style import one_line

if TYPE_CHECKING:
    from pathlib import Path

    from mnemosyne.cli.options import Options
    from mnemosyne.cli.output import Output

__all__ = ["discard", "listed", "requeue"]

Json = dict[str, object]


def listed(options: Options, output: Output) -> int:
    """List the dead letters, oldest first."""
    store = store_path(options)
    letters = asyncio.run(_letters(store))
    if not letters:
        output.text([f"there are no dead letters in {store}"])
    for letter in letters:
        item, problem = cast(Json, letter["item"]), cast(Json, letter["problem"] or {})
        work = cast(Json, item["work"])
        why = one_line(f"{problem.get('message', '')}: {problem.get('reason', '')}")
        form = {"item": work["id"], "run": item["run"], "task": item["task"], "role": work["role"]}
        form |= {"crashes": item["crashes"], "died_at": letter["died_at"], "problem": letter["problem"]}
        heading = f"{letter['died_at']}  {work['id']}  {one_line(str(work['description']))}"
        output.block("dead", form, [heading, f"  {why}"])
    return 0


def requeue(options: Options, output: Output) -> int:
    """Give a dead letter to the queue again."""
    from mnemosyne.orchestra import requeue_dead_letter

    store, item = store_path(options), _named(options)
    asyncio.run(requeue_dead_letter(store, item, options.note or "requested"))
    output.block("dead", {"item": item, "done": "requeued"}, [f"{item} is in the queue again"])
    return 0


def discard(options: Options, output: Output) -> int:
    """Forget a dead letter."""
    from mnemosyne.orchestra import discard_dead_letter

    store, item = store_path(options), _named(options)
    asyncio.run(discard_dead_letter(store, item, options.note or "requested"))
    output.block("dead", {"item": item, "done": "discarded"}, [f"{item} is forgotten"])
    return 0


async def _letters(store: Path) -> list[dict[str, object]]:
    if not store.exists():
        return []  # and asking does not make one
    from mnemosyne.orchestra import list_dead_letters

    return [dict(letter) for letter in await list_dead_letters(store)]


def _named(options: Options) -> str:
    assert options.item is not None  # argparse requires it
    return options.item
