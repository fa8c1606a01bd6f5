"""``mnemosyne stats``: what the store has seen since it was made. Of a process, see ``mnemosyne.metrics``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mnemosyne.cli.inputs import store_path

if TYPE_CHECKING:
    from mnemosyne.cli.options import Options
    from mnemosyne.cli.output import Output
    from mnemosyne.stats import StoreStats

__all__ = ["stats"]


def stats(options: Options, output: Output) -> int:
    """Show the sums over all events of the store."""
    from mnemosyne.stats import read_stats

    found = asyncio.run(read_stats(store_path(options)))
    output.block("stats", found.to_dict(), _lines(found))
    return 0


def _lines(stats: StoreStats) -> list[str]:
    usage = stats.usage
    rows = {
        "runs": _counted(stats.runs),
        "tasks": _counted(stats.tasks),
        "claims": _counted(stats.claims),
        "reviews": _counted(stats.reviews),
        "steps": _counted(stats.steps),
        "failures": _counted(stats.failures),
        "tokens": f"{usage.input_tokens:,} in, {usage.cache_read_tokens:,} from cache, {usage.output_tokens:,} out "
        f"({usage.turns:,} turns)",
        "cost": f"{usage.cost_usd:.2f} USD at list price",
        "restarts": f"{stats.restarts:,} of agents, {stats.quarantines:,} quarantined",
    }
    lines = [f"{name.ljust(10)}{text}" for name, text in rows.items()]
    return [*lines, *(f"{role.ljust(14)}{_counted(counter)}" for role, counter in sorted(stats.agents.items()))]


def _counted(counter: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in sorted(counter.items())) or "none"
