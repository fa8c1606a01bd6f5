"""``mnemosyne store check``, ``backup`` and ``prune``: looking after the file that everything is in."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mnemosyne.cli.inputs import store_path
from mnemosyne.cli.style import one_line
from mnemosyne.errors import StoreUnavailable

if TYPE_CHECKING:
    from mnemosyne.cli.options import Options
    from mnemosyne.cli.output import Output

__all__ = ["backup", "check", "prune"]


def check(options: Options, output: Output) -> int:
    """Say whether the store is sound, and what is in it.

    Raises:
        StoreUnavailable: It is not (MN-0215), or cannot be read.
    """
    from mnemosyne.orchestra import check_store

    store = store_path(options)
    report = asyncio.run(check_store(store))
    findings = cast(list[str], report["findings"])
    if findings:
        output.text([one_line(finding) for finding in findings])
        raise StoreUnavailable(
            f"the store {store} is not sound",
            code="MN-0215",
            reason="; ".join(findings),
            hint="keep a copy of it, then put a backup in its place",
        )
    counts = (
        f"{report['runs']} runs, {report['items']} items ({report['live_items']} not ended), {report['events']} events"
    )
    size = f"{_size(report['bytes'])}, of which {_size(report['free_bytes'])} are free"
    output.block("store", {**report, "store": str(store)}, [one_line(f"{store} is sound"), counts, size])
    return 0


def backup(options: Options, output: Output) -> int:
    """Copy the store, as it is at one moment, to a new file."""
    from mnemosyne.orchestra import backup_store

    store, to = store_path(options), cast(Path, options.to).absolute()
    size = asyncio.run(backup_store(store, to))
    output.block(
        "store", {"store": str(store), "backup": str(to), "bytes": size}, [one_line(f"{to}: {_size(size)}, checked")]
    )
    return 0


def prune(options: Options, output: Output) -> int:
    """Forget what ended long ago."""
    from mnemosyne.orchestra import prune_store

    store = store_path(options)
    if not store.exists():  # and asking does not make one
        raise StoreUnavailable(f"there is no store {store}", code="MN-0203", hint="mnemosyne --help")
    before = datetime.now(UTC) - timedelta(days=options.older_than)
    pruned = asyncio.run(prune_store(store, before))
    counts = ", ".join(f"{pruned[what]} {what}" for what in ("runs", "items", "events", "trees"))
    when = before.isoformat(timespec="seconds").replace("+00:00", "Z")
    output.block(
        "store", {**pruned, "store": str(store), "ended_before": when}, [f"forgotten: {counts}", f"ended before {when}"]
    )
    return 0


def _size(size: object) -> str:
    return f"{cast(int, size) / 1e6:.1f} MB"
