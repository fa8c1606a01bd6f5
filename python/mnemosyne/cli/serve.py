"""``mnemosyne serve``: the window over a store, until it is told to end.

It shows what every process does on that store. Work that comes in through it is done here, by an orchestra that is
opened with the first: who only looks needs no key.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mnemosyne.cli import inputs
from mnemosyne.cli.drive import Setting, signal_handlers

if TYPE_CHECKING:
    from typing import Self

    from mnemosyne.cli.options import Options
    from mnemosyne.cli.output import Output
    from mnemosyne.orchestra import Orchestra

__all__ = ["serve"]


def serve(options: Options, output: Output) -> int:
    """Serve until interrupted; the first line is the address. 0 unless work was under way, which can be resumed.

    Raises:
        InvalidInput: A flag cannot be used.
        EnvironmentProblem: The port is taken (MN-0710), or the token's file cannot be used (MN-0713).
    """
    from mnemosyne.config.settings import check_base_url

    store = inputs.store_path(options)
    agents = inputs.read_agents(options.agent)
    base_url = None if options.base_url is None else check_base_url(options.base_url)
    api_key = inputs.read_key(options.api_key_file, base_url, options.model)
    if agents:
        inputs.find_modules_from_here()
    setting = Setting(store, agents, options.model, base_url, api_key, options.max_concurrent)
    return asyncio.run(_serve(setting, options, output))


async def _serve(setting: Setting, options: Options, output: Output) -> int:
    from mnemosyne.window import Window

    works = _Works(setting)
    told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def arrived(number: int) -> None:
        if told.done():
            output.flush()
            os._exit(128 + number)  # the second signal is meant
        told.set_result(128 + number)

    with signal_handlers(arrived):
        # The window closes last: what is under way can be watched to its end.
        async with Window(setting.store, options.window_port, works.orchestra) as window, works:
            form = {"url": window.url, "token_file": str(window.token_file)}
            output.row("window", form, [(window.url, 0, "strong"), (f"  token {window.token_file}", 0, "dim")])
            exit_code = await told
            if works.began:
                output.note("stopping: waiting for work under way; again to stop at once")
        # What was cut off can be resumed; whoever waits for us should know of it.
        return exit_code if await _interrupted(setting.store, [run.id for run in window.runs]) else 0


async def _interrupted(store: Path, runs: list[str]) -> bool:
    from mnemosyne.orchestra import list_runs

    return bool(runs) and any(run.id in runs and run.state == "interrupted" for run in await list_runs(store))


class _Works:
    """The orchestra of a window, opened when work comes in; an async context manager that drains it."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._opening = asyncio.Lock()
        self._open = AsyncExitStack()
        self._orchestra: Orchestra | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    @property
    def began(self) -> bool:
        """Whether there is one."""
        return self._orchestra is not None

    async def orchestra(self) -> Orchestra:
        """Return it.

        Raises:
            MissingCredential: No key was found and one is needed (MN-0201).
        """
        async with self._opening:
            if self._orchestra is None:
                self._orchestra = await self._open.enter_async_context(self._setting.orchestra())
            return self._orchestra
