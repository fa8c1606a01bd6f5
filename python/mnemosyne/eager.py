"""Tasks whose first step is done when they are made, on every Python that we run on.

An item that ends in its first step is never scheduled: no handle, no round of the loop. Python 3.12 has such tasks. On
3.11 the loop lends a hand: a task asks its loop to call its first step soon, once, in its constructor, and our loop
gives that step back to be called at once. It is a real task from the beginning, so ``asyncio.timeout`` and whoever asks
for the current task find it.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["new_event_loop", "start_task", "task_options"]

_NAME = "mnemosyne-item"
_EAGER = sys.version_info >= (3, 12)


class _Loop(asyncio.SelectorEventLoop):
    """The agents' loop: always asyncio's own, whatever policy is installed, since it is measured and tested with it."""

    first_step: Callable[[], object] | None = None
    wanted = False

    def set_debug(self, enabled: bool) -> None:
        super().set_debug(enabled)
        # Each task asks for it in its constructor, and a method in Python takes 5 in 100 of what a short item costs.
        self.get_debug = super().get_debug if enabled else bool  # type: ignore[method-assign]

    if not _EAGER:

        def call_soon(  # type: ignore[override]
            self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
        ) -> asyncio.Handle | None:
            if self.wanted:
                self.wanted, self.first_step = False, callback
                return None
            return super().call_soon(callback, *args, context=context)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a loop for ``start_task``."""
    return _Loop()


def task_options(loop: asyncio.AbstractEventLoop) -> dict[str, object] | None:
    """Return with what ``asyncio.Task`` does a first step at once, but for the context; None where it cannot (3.11)."""
    return {"loop": loop, "name": _NAME, "eager_start": True} if _EAGER else None


if sys.version_info >= (3, 12):

    def start_task(
        work: Coroutine[object, object, None], loop: asyncio.AbstractEventLoop, context: contextvars.Context
    ) -> asyncio.Task[None]:
        """Return a task whose first step has been done; called on the loop's thread, outside any task."""
        return asyncio.Task(work, loop=loop, name=_NAME, context=context, eager_start=True)

else:

    def start_task(
        work: Coroutine[object, object, None], loop: asyncio.AbstractEventLoop, context: contextvars.Context
    ) -> asyncio.Task[None]:
        """Return a task whose first step has been done; called on the loop's thread, outside any task."""
        own: Any = loop
        own.wanted = True
        try:
            task = asyncio.Task(work, loop=loop, name=_NAME, context=context)
        except BaseException:
            own.wanted, own.first_step = False, None
            raise
        step, own.first_step = own.first_step, None
        context.run(step)
        return task
