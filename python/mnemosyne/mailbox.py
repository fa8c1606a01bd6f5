"""The Python end of a port: answers from Rust become results of futures on one asyncio loop.

Rust pushes into a queue and rings a bell, a descriptor that the loop watches with ``add_reader``; it needs no GIL to do
so. The loop takes what has come. An await that is given up drops the Rust future behind it (KILL-1).
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary, ref

from mnemosyne.errors import AgentError, InvalidInput, MnemosyneError, from_wire

if TYPE_CHECKING:
    from mnemosyne._core import Port

__all__ = ["Mailbox", "keep_exception", "mailbox"]

_KEPT_EXCEPTIONS = 1024  # the newest; one that nobody asks for must not live for ever

_tickets = itertools.count(1)
_exceptions: OrderedDict[int, BaseException] = OrderedDict()


class _Ask(Protocol):
    def __call__(self, port: Port, ticket: int, /) -> None: ...


def keep_exception(error: BaseException) -> int:
    """Keep an exception until the caller of the work asks for it; return the token that Rust carries instead of it."""
    token = next(_tickets)
    _exceptions[token] = error
    while len(_exceptions) > _KEPT_EXCEPTIONS:
        _exceptions.popitem(last=False)
    return token


class Mailbox:
    """The port of one loop, and the calls that wait for an answer on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, port: Port, read: Callable[[], None] | None = None) -> None:
        self._loop = loop
        self._port = port
        self._waiting: dict[int, asyncio.Future[object]] = {}
        loop.add_reader(port.fileno(), read or self._read)

    async def call(self, ask: _Ask) -> object:
        """Ask, and return the answer.

        Raises:
            MnemosyneError: The refusal, as its own class; an agent's exception is its ``__cause__``.
            InvalidInput: What was asked holds a value that is no JSON (MN-0350); the message names its path.
        """
        ticket, future = self._begin()
        try:
            self._ask(ask, ticket)
            return await future
        finally:
            self._forget(ticket)

    def call_at_once(self, ask: Callable[[Port, int], object]) -> asyncio.Future[object]:
        """Ask something that may refuse at once; return the future of its answer, which may be cancelled.

        Raises:
            MnemosyneError: The refusal, or as ``call``.
        """
        ticket, future = self._begin()
        try:
            refusal = self._ask(ask, ticket)
            if refusal is not None:
                raise _exception(refusal)
        except BaseException:
            self._forget(ticket)
            raise
        future.add_done_callback(lambda _: self._forget(ticket))
        return future

    def _ask(self, ask: Callable[[Port, int], object], ticket: int) -> object:
        try:
            return ask(self._port, ticket)
        except (TypeError, ValueError) as error:
            hint = "use None, booleans, integers of 64 bits, finite floats, UTF-8 text, and lists and dicts of these"
            raise InvalidInput(str(error), code="MN-0350", hint=hint) from error

    def _begin(self) -> tuple[int, asyncio.Future[object]]:
        ticket = next(_tickets)
        self._waiting[ticket] = self._loop.create_future()
        return ticket, self._waiting[ticket]

    def _forget(self, ticket: int) -> None:
        if self._waiting.pop(ticket, None) is not None:  # not answered: refused, cancelled, or its loop was closed
            self._port.cancel(ticket)

    def close(self) -> None:
        """Deliver nothing any more."""
        if not self._loop.is_closed():
            self._loop.remove_reader(self._port.fileno())
        self._port.close()

    def _read(self) -> None:
        for kind, ticket, _, payload in self._port:
            self.answer(kind, ticket, payload)

    def answer(self, kind: str, ticket: int, payload: object) -> None:
        """Give the answer to whoever waits for it."""
        future = self._waiting.pop(ticket, None)
        if future is None or future.done():
            return  # its await was cancelled meanwhile
        if kind == "value":
            future.set_result(payload)
        else:
            future.set_exception(_exception(payload))


def _exception(payload: object) -> MnemosyneError:
    if not isinstance(payload, dict):
        return MnemosyneError(f"an answer cannot be read: {payload!r}")
    error = from_wire(payload)
    token = payload.get("token")
    original = _exceptions.pop(token, None) if isinstance(token, int) else None
    if original is not None:
        error.__cause__ = original
    elif isinstance(error, AgentError) and payload.get("traceback"):
        error.add_note(str(payload["traceback"]))
    return error


# The loop itself keeps its mailbox, as the callback of the reader, and drops it when it is closed.
_mailboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, ref[Mailbox]] = WeakKeyDictionary()


def mailbox() -> Mailbox:
    """Return the mailbox of the running loop; each loop of a user has one, made at its first call."""
    loop = asyncio.get_running_loop()
    known = _mailboxes.get(loop)
    found = known() if known is not None else None
    if found is None:
        from mnemosyne import _core  # in here: the statement costs 3 us each time, also where it is loaded

        found = Mailbox(loop, _core.Port())
        _mailboxes[loop] = ref(found)
    return found
