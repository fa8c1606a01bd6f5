"""An agent in a process of its own: ``isolation="process"``.

The process lives on the same loop as agents of the thread do (``loop.py``), with a socket in the place of the port;
what the frames are is said in ``rust/bridge/src/worker.rs``, which is the other end. This file is both halves of the
beginning: ``employ`` starts the process through the guard and writes the first frame; run as a program, the file is
what the process does.

* **SECRET-1** Others may read a process's arguments and the environment that it was started with. Both hold nothing
  but names: what an agent of the thread would see (environment, import path, configuration with its key) comes as the
  first frame.
* **KILL-1** The process ends at the end of its socket, at SIGTERM, and at SIGKILL; what it had started ends with it.
* Standard output is the agent's to write to and goes nowhere, because that of the command line is a protocol; its end,
  with that of standard error, is kept for the error that says how the process ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pydantic import JsonValue

    from mnemosyne._core import AgentLoop
    from mnemosyne.guard import Employed, Guard

    Json = dict[str, JsonValue]

__all__ = ["employ", "importable_name", "sweep"]

_LENGTH = struct.Struct(">I")
_CHUNK = 1 << 20


# -- the half that starts it -------------------------------------------------------------------------------------------


def importable_name(agent: type) -> str:
    """Return the name by which another process finds this class.

    Raises:
        InvalidInput: There is none (MN-0380).
    """
    from mnemosyne.errors import InvalidInput

    module, path = agent.__module__, agent.__qualname__
    found: object = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if found is not agent:
        reason = "it is not found by that name: it was made inside a function, or given another name"
    elif module == "__main__" and _program() is None:
        reason = "this program has no file that another process could import it from"
    else:
        return f"{module}:{path}"
    raise InvalidInput(
        f"{module}:{path} cannot run in a process of its own",
        code="MN-0380",
        reason=reason,
        hint="define the class at the top of a module",
    )


async def employ(guard_of: Callable[[], Guard], ours: int, theirs: int, start: Json) -> Employed:
    """Start a worker process, and tell it who it is.

    Args:
        guard_of: Gives the guard, which starts it and sees to its end.
        ours: This end of its socket; closed here. Whoever reads from it has a descriptor of his own.
        theirs: The other end; closed here.
        start: ``agent_id``, ``generation``, ``source`` (its class's name), ``config`` with its secrets, ``limits``.

    Raises:
        EnvironmentProblem: The guard could not start it (MN-0208).
    """
    with socket.socket(fileno=ours) as near, socket.socket(fileno=theirs) as far:
        guard = guard_of()
        employed = await guard.employ(
            [guard.interpreter, "-I", __file__, str(start["agent_id"])],
            cwd=Path.cwd(),
            env=guard.environment(),
            channel=far,
            limits=start["limits"],  # type: ignore[arg-type]
        )
        first = {
            "start": {**start, "source": {"import": start["source"]}},
            "environment": dict(os.environ),
            "path": sys.path,
            "arguments": sys.argv,
            "program": _program() if str(start["source"]).startswith("__main__:") else None,
            "level": logging.getLogger().getEffectiveLevel(),
        }
        near.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(near, _framed(json.dumps(first).encode("ascii")))
    return employed


def _program() -> Json | None:
    """Say where the program of this process is, as ``multiprocessing`` wants to know it; None if it has no file."""
    program = sys.modules.get("__main__")
    spec = getattr(program, "__spec__", None)
    if spec is not None:
        return {"init_main_from_name": str(spec.name)}
    file = getattr(program, "__file__", None)
    return {"init_main_from_path": os.path.abspath(file)} if file else None


def _framed(body: bytes) -> bytes:
    return _LENGTH.pack(len(body)) + body


def sweep(directory: Path) -> int:
    """End what dead boots of a state directory left running; return how many processes that were.

    A guard ends all that it started, so there is something to find only where somebody killed a guard together with
    its keepers. A boot is dead when its lock can be taken (FENCE-3).
    """
    from mnemosyne.guard import BOOT_MARK

    mark = f"{BOOT_MARK}={directory}/boots/".encode()
    ended = 0
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            handle = os.pidfd_open(int(entry))
        except OSError:
            continue
        try:
            # Read after the handle was taken, so that both are of one process.
            with open(f"/proc/{entry}/environ", "rb") as file:
                variables = file.read().split(b"\0")
            boot = next((one[len(mark) :].decode() for one in variables if one.startswith(mark)), "")
            if boot and _is_dead(f"{directory}/boots/{boot}"):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                ended += 1
        except OSError:
            continue  # it has ended, or is another user's
        finally:
            os.close(handle)
    return ended


def _is_dead(boot: str) -> bool:
    """Say whether neither the boot nor a guard of it, which would be at work on it, lives."""
    for lock in (f"{boot}.lock", f"{boot}.guard"):
        try:
            descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
    return True


# -- the process -------------------------------------------------------------------------------------------------------


class _Port:
    """What the socket brings, as the loop reads it."""

    def __init__(self, channel: socket.socket, send: Callable[[bytes], None]) -> None:
        self._channel, self._send = channel, send
        self._buffer = bytearray()
        self.work: dict[int, bytes] = {}
        """Work under way as it came, by slot: what its context is made of."""

    def fileno(self) -> int:
        return self._channel.fileno()

    def __iter__(self) -> Iterator[tuple[str, int, int, Any]]:
        try:
            data = self._channel.recv(_CHUNK, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            yield "shutdown", 0, 0, None
            return
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            kind, number, payload = json.loads(body)
            if kind in ("direct", "claimed"):
                self.work[number] = body
            yield kind, number, 0, payload

    def next_direct(self) -> None:
        """Nothing: what takes the way through a socket need not save the time that a task takes."""

    def cancel(self, ticket: int) -> None:
        self._send(_core().frame("withdraw", ticket, None))

    def close(self) -> None:
        """The socket ends with the process."""


class _Side:
    """The far end as the loop knows it: ``AgentLoop``, over the socket. Any thread may call it."""

    id = 0

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._writing = threading.Lock()
        self.port = _Port(channel, self._send)

    def _send(self, frame: bytes) -> None:
        try:
            with self._writing:
                self._channel.sendall(frame)
        except OSError:
            pass  # the reader sees the same end

    def started(self, _ticket: int, error: JsonValue) -> None:
        self._send(_core().frame("started", 0, error))

    def returned(self, slot: int, result: object) -> bool:
        frame = _core().result_frame(slot, result)
        if frame is None:
            return False
        self.port.work.pop(slot, None)
        self._send(frame)
        return True

    def completed(self, slot: int, outcome: JsonValue) -> None:
        self.port.work.pop(slot, None)
        try:
            frame = _core().frame("completed", slot, outcome)
        except (TypeError, ValueError) as error:
            said: JsonValue = {"permanent": False, "type_name": "AgentError", "message": str(error)}
            frame = _core().frame("completed", slot, {"kind": "raised", "error": said})
        self._send(frame)

    def flush(self) -> None:
        """Nothing waits here."""

    def item(self, slot: int) -> JsonValue:
        body = self.port.work.get(slot)
        if body is None:
            return None
        kind, _, payload = json.loads(body)
        item: JsonValue = payload["item"] if kind == "claimed" else payload
        return item

    def upcall(self, ticket: int, _host: int, request: JsonValue) -> None:
        self._send(_core().frame("upcall", ticket, request))

    def notify(self, _host: int, request: JsonValue) -> None:
        self._send(_core().frame("notify", 0, request))

    def run_plain(self, number: int) -> None:
        # A thread each: there are never more than the agent has items in flight, and what does not stop is killed.
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._run_plain, args=(number, loop), daemon=True).start()

    def _run_plain(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        from mnemosyne.loop import ran, run_plain

        run_plain(number)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(ran, self.id, number)

    def leave_behind(self, number: int) -> None:
        """The process is killed next."""

    def heartbeat(self, _lag: float, _limit: float) -> None:
        self._send(_core().frame("beat", 0, None))

    def log(self, record: logging.LogRecord, text: str) -> None:
        from mnemosyne.log_context import log_context

        about: JsonValue = [[name, str(value)] for name, value in log_context(record).items()]
        said: JsonValue = [[record.created, min(max(record.levelno, 0), 255), record.name, text, about]]
        self._send(_core().frame("log", 0, said))


class _ToParent(logging.Handler):
    """Hands every record to the parent's logging, which decides where it goes."""

    def __init__(self, side: _Side) -> None:
        super().__init__()
        self._side = side

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record).encode("utf-8", "replace").decode("utf-8")
            self._side.log(record, text)
        except Exception:
            self.handleError(record)


def _core() -> Any:
    # Imported late: the import path comes with the first frame.
    from mnemosyne import _core

    return _core


def _read_exactly(channel: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = channel.recv(length - len(data))
        if not part:
            sys.exit(0)  # whoever started us is gone
        data += part
    return bytes(data)


def main() -> None:
    """Be a worker process until the other end says that it is over."""
    channel = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)  # nothing that the agent starts gets the socket
    os.close(null)
    (length,) = _LENGTH.unpack(_read_exactly(channel, _LENGTH.size))
    first: dict[str, Any] = json.loads(_read_exactly(channel, length))
    marks = {name: value for name, value in os.environ.items() if name == "MNEMOSYNE_BOOT"}
    os.environ.clear()
    os.environ.update({**first["environment"], **marks})
    sys.path[:], sys.argv[:] = first["path"], first["arguments"]
    sys.modules["mnemosyne.worker"] = sys.modules[__name__]  # of which there is one, by both of its names
    from mnemosyne import loop

    side = _Side(channel)
    logging.getLogger().addHandler(_ToParent(side))
    logging.getLogger().setLevel(first["level"])
    loop.run_worker(cast("AgentLoop", side), first["start"], lambda: _import_program(first["program"]))


def _import_program(program: Json | None) -> None:
    """Make the classes of the parent's program known, where the agent's is one of them, as ``multiprocessing`` does.

    Raises:
        InvalidInput: It cannot be imported (MN-0381).
    """
    from mnemosyne.errors import InvalidInput

    if program is None:
        return
    from multiprocessing import spawn

    try:
        spawn.prepare(program)
    except Exception as error:
        raise InvalidInput(
            "the program that the agent's class is in cannot be imported by its process",
            code="MN-0381",
            reason=f"{type(error).__name__}: {error}",
            hint='let the program start under `if __name__ == "__main__":`',
        ) from error


if __name__ == "__main__":
    main()
