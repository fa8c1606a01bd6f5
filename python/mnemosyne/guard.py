"""The one small process that starts all child processes, and ends them (KILL-2).

No process may outlive the supervisor, even after ``kill -9`` of it, daemons with a session of their own included. The
supervisor itself cannot promise that: it may be gone. So a second process, the *guard*, starts everything:

```
supervisor ==socket== guard (lock, subreaper, one thread) -- keeper (subreaper) -- command -- whatever it starts
```

* The guard acts on the end of its socket and on the death of its parent: it ends every command, and holds its lock
  until the last child is gone. A resume waits for that lock (``wait_until_gone``).
* Each command has a *keeper*, a fork of the guard that is the subreaper of that command alone. Whatever daemonises
  becomes a child of the keeper, so the descendants of one command are always known, whatever session, group or
  environment they gave themselves. A command is over when its main process is over; what it left behind is killed.
* If the guard itself is killed, its keepers get a parent-death signal and do the same; they share the lock, so it
  still is not free before the last child is gone. (Parent-death signals follow the *thread* that forked; the guard has
  only one, which is why it, and nobody else, may use them.)

This file is both ends. Run as a program (``python -I -S guard.py``) it is the guard: only the first half is executed,
so that the process stays at about 10 MB and starts in 20 ms; importing asyncio would double both. Imported, it gives
``Guard``, the client.
"""

# ruff: noqa: E402 - the client's imports come after the program, on purpose

from __future__ import annotations

import _socket  # the C module alone: `socket` would add its own imports to every guard
import contextlib
import fcntl
import functools
import gc
import json
import os
import resource
import select
import signal
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes

__all__ = [
    "BOOT_MARK",
    "CommandResult",
    "Employed",
    "Guard",
    "Spawned",
    "base_environment",
    "configure",
    "shared",
    "wait_until_gone",
]

_FRAME = struct.Struct(">II")
"""Length of the JSON header, length of the payload; both follow."""

_STATUS = struct.Struct("ii")
"""What a keeper tells the guard: (_STATUS_PID, process id of the command) and then (_STATUS_EXIT, exit code)."""

_STATUS_PID, _STATUS_EXIT = 0, 1
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_CONTROL = 0
_DESCRIPTORS = 16  # that are taken from one read; each request brings one at most
_CHUNK = 65536
_LOCK_PATIENCE_SECONDS = 2.0
_KEEPER_SIGNALS = {signal.SIGCHLD, signal.SIGTERM}


@functools.cache
def _libc() -> ctypes.CDLL:
    # Imported here, because the client has no use for it.
    import ctypes

    return ctypes.CDLL(None)


def _prctl(option: int, value: int) -> None:
    if _libc().prctl(option, value, 0, 0, 0) != 0:
        raise OSError(f"prctl({option}) was refused")


def _encode_frame(header: dict[str, object], payload: bytes = b"") -> bytes:
    text = json.dumps(header).encode("ascii")
    return _FRAME.pack(len(text), len(payload)) + text + payload


def _decode_frames(buffer: bytearray) -> list[tuple[dict[str, object], bytes]]:
    """Take every whole frame off the front of ``buffer``."""
    frames = []
    while len(buffer) >= _FRAME.size:
        text, payload = _FRAME.unpack_from(buffer)
        end = _FRAME.size + text + payload
        if len(buffer) < end:
            break
        header = json.loads(bytes(buffer[_FRAME.size : _FRAME.size + text]))
        frames.append((header, bytes(buffer[_FRAME.size + text : end])))
        del buffer[:end]
    return frames


def _descendants(root: int) -> list[int]:
    """Return the process ids below ``root``, from one walk over ``/proc``."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                stat = file.read()
        except OSError:
            continue
        # The second field is the name in parentheses, and may hold spaces and parentheses of its own.
        parent = int(stat[stat.rindex(b")") + 2 :].split()[1])
        children.setdefault(parent, []).append(int(entry))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _end_descendants() -> None:
    """Kill and reap everything below this process; needs SIGCHLD blocked and this process to be a subreaper.

    One walk is not enough, because a process can fork between the walk and its death. As a subreaper this process
    inherits such a child, so "no child left" is the same as "no descendant left".
    """
    pause = 0.001
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for pid in _descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        signal.sigtimedwait({signal.SIGCHLD}, pause)
        pause = min(pause * 2, 0.05)


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def _become(keeper: int, argv: list[str], cwd: str, env: dict[str, str], limits: dict[str, int]) -> None:
    """Turn this fresh fork into the command; never returns."""
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # A set-user-ID program could not be ended by us, and KILL-2 has no exceptions.
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        if os.getppid() != keeper:
            os._exit(1)
        # A core file in a tree would be taken for a change.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if limits.get("memory_mb"):
            # What it can write to, and not its address space, of which programs ask for far more than they use.
            _limit(resource.RLIMIT_DATA, limits["memory_mb"] << 20)
        if limits.get("cpu_seconds"):
            _limit(resource.RLIMIT_CPU, limits["cpu_seconds"])
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.chdir(cwd)
        os.execvpe(argv[0], argv, env)
    except Exception as error:
        os.write(2, f"cannot start {argv[0]} in {cwd}: {error}\n".encode(errors="replace"))
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)
    finally:
        os._exit(126)


def _keep(
    guard: int, argv: list[str], cwd: str, env: dict[str, str], descriptors: list[int], limits: dict[str, int]
) -> None:
    """Be the keeper of one command: start it, wait for it, end what it left behind; never returns.

    Args:
        guard: Process id of the guard.
        argv: The command.
        cwd: Its directory.
        env: Its whole environment.
        descriptors: stdin, stdout and stderr of the command, then the status pipe, then the lock if there is one.
        limits: ``memory_mb`` and ``cpu_seconds``, of each process.
    """
    try:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != guard:
            os._exit(1)
        # Moved out of the way first, because a source may lie where another one has to go.
        high = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 64) for number in descriptors]
        for target, source in enumerate(high):
            os.dup2(source, target, inheritable=target < 3)
        # A copy of another command's pipe would keep that pipe open; a copy of the socket would hide its end.
        for name in os.listdir("/proc/self/fd"):
            if int(name) >= len(descriptors):
                with contextlib.suppress(OSError):
                    os.close(int(name))
        keeper = os.getpid()
        command = os.fork()
        if command == 0:
            _become(keeper, argv, cwd, env, limits)
        os.write(3, _STATUS.pack(_STATUS_PID, command))
        null = os.open("/dev/null", os.O_RDWR)
        for target in range(3):
            os.dup2(null, target)
        _wait_for(command)
        _end_descendants()
        os._exit(0)
    finally:
        os._exit(70)


def _wait_for(command: int) -> None:
    """Return when ``command`` ended, its exit code reported, or when the guard wants it ended."""
    while True:
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == command:
                    os.write(3, _STATUS.pack(_STATUS_EXIT, os.waitstatus_to_exitcode(status)))
                    return
        except ChildProcessError:
            return
        if signal.sigwait(_KEEPER_SIGNALS) == signal.SIGTERM:
            return


class _Capture:
    """The first and the last half of an output: a compiler says what matters first, a test says it last."""

    def __init__(self, limit: int) -> None:
        self.half = max(1, limit // 2)
        self.total = 0
        self.head = bytearray()
        self.tail = bytearray()

    def add(self, data: bytes) -> None:
        self.total += len(data)
        room = self.half - len(self.head)
        if room > 0:
            self.head += data[:room]
            data = data[room:]
        self.tail += data
        if len(self.tail) > 2 * self.half:
            del self.tail[: -self.half]

    @property
    def truncated(self) -> bool:
        return self.total > 2 * self.half

    def content(self) -> bytes:
        if not self.truncated:
            return bytes(self.head + self.tail)
        left_out = self.total - 2 * self.half
        return bytes(self.head) + b"\n[%d bytes left out]\n" % left_out + bytes(self.tail[-self.half :])


class _Command:
    """One running command, as the guard sees it."""

    def __init__(self, header: dict[str, object], payload: bytes) -> None:
        self.number = int(str(header["number"]))
        self.tag = header.get("tag")
        self.wants_line = bool(header.get("first_line"))
        self.channel: int | None = None
        """Stands in for its stdin: one end of a socket that came with the request."""
        limit = int(str(header["output_limit"]))
        self.out, self.err = _Capture(limit), _Capture(limit)
        self.stdin = memoryview(payload)
        self.started = time.monotonic()
        timeout = header.get("timeout")
        self.deadline = None if timeout is None else self.started + float(str(timeout))
        self.keeper = 0
        self.pid = 0
        self.exit_codes: list[int] = []
        """What was said on the status pipe, which a command of the same user can open: believed only if said once."""
        self.timed_out = False
        self.descriptors: dict[str, int] = {}
        """Our ends of its pipes by name: status, out, err, in. An entry leaves when it is closed."""
        self.status = bytearray()
        self.line = bytearray()


class _GuardProcess:
    """The guard's side: one thread, one ``poll``; everything it knows is in ``commands``."""

    def __init__(self, parent: int, lock: str, scratch: str) -> None:
        self.parent, self.lock_path, self.scratch = parent, lock, scratch
        self.lock: int | None = None
        self.poll = select.poll()
        self.commands: dict[int, _Command] = {}
        self.by_descriptor: dict[int, tuple[_Command, str]] = {}
        self.kills: list[tuple[int, set[int]]] = []
        """Requests to end a tag: the number to answer, and the commands that are not gone yet."""
        self.control = _socket.socket(fileno=_CONTROL)
        self.incoming = bytearray()
        self.received: list[int] = []
        """Descriptors that came with requests which have not been read whole."""
        self.outgoing = bytearray()
        self.stopping = False

    # -- life ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        wake_up, wake_up_write = os.pipe()
        os.set_blocking(wake_up_write, False)
        signal.set_wakeup_fd(wake_up_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        # A collection would write to every page, and each keeper would then need a copy of its own.
        gc.disable()
        gc.freeze()
        os.set_blocking(_CONTROL, False)
        self.poll.register(_CONTROL, select.POLLIN)
        self.poll.register(wake_up, select.POLLIN)
        self._watch_parent()
        problem = self._prepare()
        self._send({"event": "ready", "error": problem})
        try:
            while not problem and not self.stopping:
                self._turn()
        finally:
            self._end(remove_scratch=not problem)

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def _watch_parent(self) -> None:
        """Also watch the parent itself: a fork of it may hold a copy of the socket, which then does not end."""
        # Fails on too old a kernel, or if the parent is gone already, which the end of the socket tells as well.
        with contextlib.suppress(OSError):
            self.poll.register(os.pidfd_open(self.parent), select.POLLIN)

    def _prepare(self) -> str | None:
        """Take the lock and make the scratch directories; return what went wrong."""
        try:
            if self.lock_path:
                self.lock = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                if not self._take_lock(self.lock):
                    return f"another guard still holds {self.lock_path}"
            for directory in (self.scratch, f"{self.scratch}/home", f"{self.scratch}/tmp"):
                os.mkdir(directory, 0o700)
        except OSError as error:
            return str(error)
        return None

    def _take_lock(self, lock: int) -> bool:
        deadline = time.monotonic() + _LOCK_PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.01)

    def _end(self, *, remove_scratch: bool) -> None:
        """End everything; the lock is free only when this is done, because nobody closes it before."""
        for command in self.commands.values():
            _terminate(command)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        for command in self.commands.values():
            os.waitpid(command.keeper, 0)
        _end_descendants()
        if self.lock is not None:
            os.close(self.lock)
        if remove_scratch:
            import shutil

            shutil.rmtree(self.scratch, ignore_errors=True)

    # -- one turn of the loop -----------------------------------------------------------------------------------

    def _turn(self) -> None:
        for descriptor, _ in self.poll.poll(self._milliseconds_to_deadline()):
            if descriptor == _CONTROL:
                self._control()
            elif descriptor in self.by_descriptor:
                self._pipe(*self.by_descriptor[descriptor])
            else:
                # The wake-up pipe or the parent's death.
                self.stopping = True
        now = time.monotonic()
        for command in list(self.commands.values()):
            if command.deadline is not None and now >= command.deadline:
                command.deadline = None
                command.timed_out = True
                _terminate(command)

    def _milliseconds_to_deadline(self) -> int | None:
        deadlines = [command.deadline for command in self.commands.values() if command.deadline is not None]
        if not deadlines:
            return None
        return max(0, int((min(deadlines) - time.monotonic()) * 1000) + 1)

    def _control(self) -> None:
        self._flush()
        try:
            data, extra, _, _ = self.control.recvmsg(1 << 20, _socket.CMSG_SPACE(_DESCRIPTORS * 4))
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self.stopping = True
            return
        for _, _, numbers in extra:
            self.received += memoryview(numbers).cast("i").tolist()
        self.incoming += data
        for header, payload in _decode_frames(self.incoming):
            self._handle(header, payload)

    def _handle(self, header: dict[str, object], payload: bytes) -> None:
        operation = header["op"]
        if operation == "start":
            try:
                self._start(header, payload)
            except OSError as error:
                self._send({"number": header["number"], "event": "ended", "error": str(error)})
        elif operation == "cancel":
            command = self.commands.get(int(str(header["target"])))
            if command is not None:
                _terminate(command)
        elif operation == "kill":
            concerned = {number for number, command in self.commands.items() if _is_meant(command, header)}
            for number in concerned:
                _terminate(self.commands[number])
            self.kills.append((int(str(header["number"])), concerned))
            self._answer_kills(0)

    def _send(self, header: dict[str, object], payload: bytes = b"") -> None:
        self.outgoing += _encode_frame(header, payload)
        self._flush()

    def _flush(self) -> None:
        try:
            while self.outgoing:
                del self.outgoing[: os.write(_CONTROL, self.outgoing[: 1 << 20])]
        except BlockingIOError:
            pass
        except OSError:
            self.stopping = True
        self.poll.modify(_CONTROL, select.POLLIN | (select.POLLOUT if self.outgoing else 0))

    # -- commands -----------------------------------------------------------------------------------------------

    def _start(self, header: dict[str, object], payload: bytes) -> None:
        command = _Command(header, payload)
        if header.get("channel"):
            command.channel = self.received.pop(0)
        theirs: list[int] = []
        try:
            self._open_pipes(command, theirs, merge=bool(header.get("merge_output")))
            argv, env, limits = header["argv"], header["env"], header.get("limits") or {}
            assert isinstance(argv, list)
            assert isinstance(env, dict)
            assert isinstance(limits, dict)
            signal.pthread_sigmask(signal.SIG_BLOCK, _KEEPER_SIGNALS)
            try:
                guard = os.getpid()
                command.keeper = os.fork()
                if command.keeper == 0:
                    lock = [] if self.lock is None else [self.lock]
                    _keep(guard, argv, str(header["cwd"]), env, theirs + lock, limits)
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _KEEPER_SIGNALS)
        except OSError:
            for descriptor in command.descriptors.values():
                os.close(descriptor)
            raise
        finally:
            for descriptor in set(theirs):
                os.close(descriptor)
        for name, descriptor in command.descriptors.items():
            os.set_blocking(descriptor, False)
            self.by_descriptor[descriptor] = (command, name)
            self.poll.register(descriptor, select.POLLOUT if name == "in" else select.POLLIN)
        self.commands[command.number] = command

    def _open_pipes(self, command: _Command, theirs: list[int], *, merge: bool) -> None:
        """Fill ``command.descriptors`` with our ends, and ``theirs`` in the order that ``_keep`` wants."""
        if command.channel is not None:
            read = command.channel
        elif command.stdin:
            read, command.descriptors["in"] = os.pipe()
        else:
            read = os.open("/dev/null", os.O_RDONLY)
        theirs.append(read)
        command.descriptors["out"], write = os.pipe()
        theirs.append(write)
        if not merge:
            command.descriptors["err"], write = os.pipe()
        theirs.append(write)
        command.descriptors["status"], write = os.pipe()
        theirs.append(write)

    def _pipe(self, command: _Command, name: str) -> None:
        if name == "in":
            self._feed(command)
            return
        try:
            data = os.read(command.descriptors[name], _CHUNK)
        except BlockingIOError:
            return
        if name == "status":
            self._status(command, data)
        elif not data:
            self._close(command, name)
        else:
            self._output(command, name, data)

    def _feed(self, command: _Command) -> None:
        try:
            command.stdin = command.stdin[os.write(command.descriptors["in"], command.stdin[:_CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            command.stdin = command.stdin[:0]
        if not command.stdin:
            self._close(command, "in")

    def _output(self, command: _Command, name: str, data: bytes) -> None:
        (command.out if name == "out" else command.err).add(data)
        if name == "out" and command.wants_line:
            command.line += data
            self._tell_line(command)

    def _tell_line(self, command: _Command) -> None:
        """Say the first line once there is one, and a process id: a fast command writes before its keeper does."""
        if command.wants_line and command.pid and b"\n" in command.line:
            command.wants_line = False
            line = bytes(command.line.split(b"\n", 1)[0])
            self._send({"number": command.number, "event": "line", "pid": command.pid}, line)

    def _status(self, command: _Command, data: bytes) -> None:
        command.status += data
        while len(command.status) >= _STATUS.size:
            kind, value = _STATUS.unpack_from(command.status)
            del command.status[: _STATUS.size]
            if kind == _STATUS_PID:
                command.pid = value
                if command.channel is not None:
                    self._send({"number": command.number, "event": "line", "pid": command.pid})
                self._tell_line(command)
            else:
                command.exit_codes.append(value)
        if not data:
            self._finish(command)

    def _finish(self, command: _Command) -> None:
        """The keeper is gone, so everything below it is; what is still in the pipes is all there will be."""
        _, keeper_status = os.waitpid(command.keeper, 0)
        # A keeper that somebody killed said nothing, whatever stands in its name (TRUTH-1).
        believed = keeper_status == 0 and len(command.exit_codes) == 1 and not command.timed_out
        for name in ("out", "err"):
            while name in command.descriptors:
                try:
                    data = os.read(command.descriptors[name], _CHUNK)
                except BlockingIOError:
                    break
                if not data:
                    break
                self._output(command, name, data)
        for name in list(command.descriptors):
            self._close(command, name)
        del self.commands[command.number]
        out, err = command.out.content(), command.err.content()
        header: dict[str, object] = {
            "number": command.number,
            "event": "ended",
            "exit_code": command.exit_codes[0] if believed else None,
            "stdout": len(out),
            "seconds": time.monotonic() - command.started,
            "timed_out": command.timed_out,
            "truncated": command.out.truncated or command.err.truncated,
        }
        self._send(header, out + err)
        self._answer_kills(command.number)

    def _answer_kills(self, gone: int) -> None:
        for number, remaining in self.kills:
            remaining.discard(gone)
            if not remaining:
                self._send({"number": number, "event": "ended", "error": None})
        self.kills = [entry for entry in self.kills if entry[1]]

    def _close(self, command: _Command, name: str) -> None:
        descriptor = command.descriptors.pop(name)
        self.poll.unregister(descriptor)
        del self.by_descriptor[descriptor]
        os.close(descriptor)


def _is_meant(command: _Command, header: dict[str, object]) -> bool:
    return command.number == header["target"] if "target" in header else command.tag == header["tag"]


def _terminate(command: _Command) -> None:
    """Ask the keeper to end its command; it is our unreaped child, so its id cannot be another process."""
    os.kill(command.keeper, signal.SIGTERM)


if __name__ == "__main__":
    _GuardProcess(int(sys.argv[1]), sys.argv[2], sys.argv[3]).run()
    sys.exit(0)


# The client. Nothing below is executed in the guard's own process.

import asyncio
import atexit
import secrets
import socket
import subprocess
import tempfile
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mnemosyne.errors import EnvironmentProblem

_START_SECONDS = 20.0
_CANCEL_PATIENCE_SECONDS = 2.0
_OUTPUT_CHARACTERS = 8_000
_RING = 65_536  # bytes of a worker's output that are kept

BOOT_MARK = "MNEMOSYNE_BOOT"
"""The variable by which processes of a boot are found, should their guard be killed with its keepers."""

_PASSED_ON = (
    "LANG",
    "LC_ALL",
    "TZ",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "LD_LIBRARY_PATH",
    "MNEMOSYNE_BOOT",
    "RUSTUP_HOME",
    "JAVA_HOME",
)
"""What a command inherits from us besides PATH: a closed list, so that a new kind of secret is not passed on either."""


def base_environment(interpreter: str, scratch: Path | None = None) -> dict[str, str]:
    """Return the environment of a command: enough to find programs, and no secrets (SECRET-1).

    ``HOME`` is a throwaway directory, not the user's: a command that a model wrote should neither find credentials by
    default (``~/.netrc``, ``~/.aws``, ``~/.git-credentials``) nor give another result because of the user's dot files.
    It still runs as the user and could open these by path; this is hygiene, not a sandbox.

    Args:
        interpreter: The configured Python; its directory comes first in ``PATH``, so ``python3`` is this one.
        scratch: A directory with ``home`` and ``tmp`` in it; without it ``HOME`` names nothing that exists.
    """
    folder = os.path.dirname(os.path.abspath(interpreter))
    rest = [entry for entry in os.environ.get("PATH", os.defpath).split(os.pathsep) if os.path.isabs(entry)]
    environment = {
        "PATH": os.pathsep.join([folder, *(entry for entry in rest if entry != folder)]),
        "HOME": str(scratch / "home") if scratch else "/nonexistent",
        "TMPDIR": str(scratch / "tmp") if scratch else tempfile.gettempdir(),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "NO_COLOR": "1",
        # Byte code in a tree would be taken for a change, or hide one.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment.update({name: os.environ[name] for name in _PASSED_ON if name in os.environ})
    rustup = os.path.expanduser("~/.rustup")
    if "RUSTUP_HOME" not in environment and os.path.isdir(rustup):
        # The cargo on PATH is usually rustup's proxy, which is useless without its toolchains.
        environment["RUSTUP_HOME"] = rustup
    return environment


async def wait_until_gone(lock: Path, timeout: float) -> bool:
    """Wait until no guard holds ``lock``: the last child of an earlier guard is gone.

    Args:
        lock: The lock file; one that does not exist is free.
        timeout: Seconds.

    Returns:
        False if it is still held after ``timeout``.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        finally:
            os.close(descriptor)
        await asyncio.sleep(0.02)


@dataclass(frozen=True)
class CommandResult:
    """How a command ended."""

    exit_code: int | None
    """Negative for a signal that did not come from us; None if we ended it (time limit or request), or if it meddled
    with the process that watches it."""
    stdout: bytes
    stderr: bytes
    """Empty where the output was merged."""
    seconds: float
    timed_out: bool
    truncated: bool
    """The middle of stdout or stderr was left out."""

    @property
    def output(self) -> str:
        """The end of stdout and stderr together, as text of at most 8,000 characters."""
        parts = [part.decode("utf-8", "replace") for part in (self.stdout, self.stderr) if part]
        text = "\n".join(part.rstrip("\n") for part in parts)
        if len(text) <= _OUTPUT_CHARACTERS:
            return text
        return f"[{len(text) - _OUTPUT_CHARACTERS} characters left out]\n{text[-_OUTPUT_CHARACTERS:]}"


@dataclass(frozen=True)
class Employed:
    """A worker process."""

    pid: int
    ended: Awaitable[CommandResult]
    """Comes when it has ended, and all that it had started; stderr is merged into stdout."""


@dataclass
class _Pending:
    """A request that the guard has not answered."""

    loop: asyncio.AbstractEventLoop
    ended: asyncio.Future[CommandResult]
    line: asyncio.Future[tuple[int, str]] | None = None
    """Process id and first line, where these were asked for."""


@dataclass
class Spawned:
    """A command that goes on running."""

    pid: int
    first_line: str
    """Its first line of output, without the line end."""
    _number: int = field(repr=False)
    _guard: Guard = field(repr=False)

    async def stop(self) -> None:
        """End it with everything it started; returns when it is gone. Idempotent; from any event loop."""
        if self._guard.alive:
            await self._guard._kill({"target": self._number})


class Guard:
    """Handle to one guard process; usable from any thread and any event loop."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        channel: socket.socket,
        interpreter: str,
        scratch: Path,
        boot: str | None = None,
    ):
        self.interpreter = interpreter
        """The configured Python, first in the ``PATH`` of commands."""
        self._process = process
        self._channel = channel
        self._scratch = scratch
        self._boot = boot
        self._lock = threading.Lock()
        """Guards everything below; never held while waiting for the guard."""
        self._pending: dict[int, _Pending] = {}
        self._last_number = 0
        self._alive = True
        self._writing = threading.Lock()
        """Keeps frames whole; apart from ``_lock``, so that a large stdin cannot hold up the reader."""
        self._ready = threading.Event()
        self._problem: str | None = "it ended while starting"
        self._gone = threading.Event()
        self._on_gone: list[Callable[[], object]] = []
        self._reader = threading.Thread(target=self._read, name="mnemosyne-guard", daemon=True)

    @classmethod
    def start(cls, *, lock: Path | None = None, interpreter: str | None = None) -> Guard:
        """Start one guard process and wait (about 25 ms) until it holds its lock.

        Args:
            lock: A file that is locked for as long as any child of this guard lives.
            interpreter: The Python that runs it; None for the configured one.

        Raises:
            EnvironmentProblem: It did not start, or an earlier guard still holds the lock (MN-0208).
        """
        if interpreter is None:
            from mnemosyne.config import settings

            interpreter = settings.interpreter()
        scratch = Path(tempfile.gettempdir()) / f"mnemosyne-{secrets.token_hex(6)}"
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(
                    [interpreter, "-I", "-S", __file__, str(os.getpid()), str(lock or ""), str(scratch)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={name: os.environ[name] for name in ("LANG", "LD_LIBRARY_PATH") if name in os.environ},
                    # A Ctrl-C at the terminal is the supervisor's business: it drains, and needs its children.
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise _guard_problem(f"{interpreter} could not be started: {error}") from error
        guard = cls(process, ours, interpreter, scratch, str(lock.with_suffix("")) if lock else None)
        guard._reader.start()
        if not guard._ready.wait(_START_SECONDS) or guard._problem is not None:
            guard.close_now()
            raise _guard_problem(guard._problem or f"it did not answer within {_START_SECONDS:g} s")
        return guard

    @property
    def alive(self) -> bool:
        """False once it was closed or died."""
        return self._alive

    @property
    def pid(self) -> int:
        """Process id of the guard."""
        return self._process.pid

    def environment(self) -> dict[str, str]:
        """Return a fresh copy of the environment that a command gets by default."""
        marked = {} if self._boot is None else {BOOT_MARK: self._boot}
        return {**base_environment(self.interpreter, self._scratch), **marked}

    async def run(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: float = 120.0,
        output_limit: int = 1_000_000,
        tag: str | None = None,
        merge_output: bool = False,
    ) -> CommandResult:
        """Run a command to its end; what it leaves behind is killed. Cancelling ends it, and waits for that.

        Args:
            argv: Program and arguments. A program that cannot be started gives exit code 126 or 127 and a reason.
            cwd: Its directory.
            env: Its whole environment; None for ``environment``.
            stdin: What it reads.
            timeout: Seconds after which it is ended.
            output_limit: Bytes kept of stdout, and of stderr; of more, the first and the last half are kept.
            tag: A name for ``kill``.
            merge_output: stderr goes into stdout, in the order of writing.

        Raises:
            EnvironmentProblem: The guard is gone (MN-0208).
        """
        header = self._header(argv, cwd, env, tag, output_limit)
        header.update({"timeout": timeout, "merge_output": merge_output})
        number, pending = self._request(header, stdin)
        try:
            return await asyncio.shield(pending.ended)
        except asyncio.CancelledError:
            await self._cancel(number, pending)
            raise

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        tag: str | None = None,
    ) -> Spawned:
        """Start a command that goes on running, and wait for its first line of output.

        Raises:
            EnvironmentProblem: It ended first, or printed nothing within 20 s (MN-0256); or the guard is gone.
        """
        header = self._header(argv, cwd, env, tag, 65_536)
        header["first_line"] = True
        number, pending = self._request(header, b"")
        assert pending.line is not None
        try:
            either: list[asyncio.Future[tuple[int, str]] | asyncio.Future[CommandResult]] = [
                pending.line,
                pending.ended,
            ]
            await asyncio.wait(either, timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if pending.line.done():
                pid, line = pending.line.result()
                return Spawned(pid, line, number, self)
        except asyncio.CancelledError:
            await self._cancel(number, pending)
            raise
        self._send({"op": "cancel", "target": number})
        result = await asyncio.shield(pending.ended)
        raise EnvironmentProblem(
            f"{argv[0]} did not come up",
            code="MN-0256",
            reason=result.output or f"it printed nothing within {_START_SECONDS:g} s",
            hint="run it again; if the machine is busy, wait a little first",
        )

    async def employ(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        channel: socket.socket,
        limits: Mapping[str, int | None],
    ) -> Employed:
        """Start a worker process, with ``channel`` in the place of its stdin, and return when it has a process id.

        Args:
            argv: Program and arguments.
            cwd: Its directory.
            env: Its environment as others may read it in ``/proc``.
            channel: Its end of a socket; may be closed afterwards.
            limits: ``memory_mb`` and ``cpu_seconds`` of each of its processes.

        Raises:
            EnvironmentProblem: The guard is gone, or could not start it (MN-0208).
        """
        header = self._header(argv, cwd, env, None, _RING)
        known = {name: limit for name, limit in limits.items() if limit is not None}
        header.update({"channel": True, "merge_output": True, "limits": known})
        number, pending = self._request(header, b"", channel)
        assert pending.line is not None
        either: list[asyncio.Future[tuple[int, str]] | asyncio.Future[CommandResult]] = [pending.line, pending.ended]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._cancel(number, pending)
            raise
        if not pending.line.done():
            pending.ended.result()  # raises what the guard said
            raise _guard_problem("it could not start a process")
        return Employed(pending.line.result()[0], asyncio.shield(pending.ended))

    async def kill(self, tag: str) -> None:
        """End every command of ``tag``; returns when the last one and all it started are gone."""
        await self._kill({"tag": tag})

    async def close(self) -> None:
        """End every command and the guard; returns when it is gone. Idempotent."""
        loop = asyncio.get_running_loop()
        gone = loop.create_future()
        with self._lock:
            self._on_gone.append(lambda: loop.call_soon_threadsafe(_resolve, gone, None))
            already = self._gone.is_set()
        self._hang_up()
        if not already:
            await gone

    def close_now(self) -> None:
        """As ``close``, blocking."""
        self._hang_up()
        self._gone.wait(_START_SECONDS)

    # -- inside -------------------------------------------------------------------------------------------------

    def _header(
        self, argv: Sequence[str], cwd: Path, env: Mapping[str, str] | None, tag: str | None, output_limit: int
    ) -> dict[str, object]:
        return {
            "op": "start",
            "argv": [str(part) for part in argv],
            "cwd": str(cwd),
            "env": self.environment() if env is None else dict(env),
            "tag": tag,
            "output_limit": output_limit,
        }

    def _request(
        self, header: dict[str, object], payload: bytes, channel: socket.socket | None = None
    ) -> tuple[int, _Pending]:
        loop = asyncio.get_running_loop()
        pending = _Pending(loop, loop.create_future())
        if header.get("first_line") or channel is not None:
            pending.line = loop.create_future()
        with self._lock:
            if not self._alive:
                raise _guard_problem("it is gone")
            self._last_number += 1
            number = self._last_number
            self._pending[number] = pending
        self._send({**header, "number": number}, payload, channel)
        return number, pending

    def _send(self, header: dict[str, object], payload: bytes = b"", channel: socket.socket | None = None) -> None:
        frame = _encode_frame(header, payload)
        try:
            with self._writing:
                if channel is not None:
                    frame = frame[socket.send_fds(self._channel, [frame], [channel.fileno()]) :]
                self._channel.sendall(frame)
        except OSError:
            # The reader sees the same end, and fails whatever is pending.
            pass

    async def _kill(self, which: dict[str, object]) -> None:
        _, pending = self._request({"op": "kill", **which}, b"")
        await pending.ended

    async def _cancel(self, number: int, pending: _Pending) -> None:
        self._send({"op": "cancel", "target": number})
        await asyncio.wait({pending.ended}, timeout=_CANCEL_PATIENCE_SECONDS)
        if pending.ended.done() and not pending.ended.cancelled():
            pending.ended.exception()

    def _hang_up(self) -> None:
        with self._lock:
            self._alive = False
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)

    def _read(self) -> None:
        buffer = bytearray()
        try:
            while data := self._channel.recv(1 << 20):
                buffer += data
                for header, payload in _decode_frames(buffer):
                    self._deliver(header, payload)
        except OSError:
            pass
        with self._lock:
            self._alive = False
            orphans, self._pending = list(self._pending.values()), {}
        self._process.wait()
        self._channel.close()
        for pending in orphans:
            _from_thread(pending.loop, _fail, pending.ended, _guard_problem("it ended before the command did"))
        with self._lock:
            self._gone.set()
            waiting, self._on_gone = self._on_gone, []
        self._ready.set()
        for callback in waiting:
            # Raised if the loop that wanted to know is closed.
            with contextlib.suppress(RuntimeError):
                callback()

    def _deliver(self, header: dict[str, object], payload: bytes) -> None:
        event, error = header["event"], header.get("error")
        if event == "ready":
            self._problem = None if error is None else str(error)
            self._ready.set()
            return
        number = int(str(header["number"]))
        with self._lock:
            pending = self._pending.get(number) if event == "line" else self._pending.pop(number, None)
        if pending is None:
            return
        if event == "line":
            first_line = (int(str(header["pid"])), payload.decode("utf-8", "replace").rstrip("\r"))
            _from_thread(pending.loop, _resolve, pending.line, first_line)
        elif error is not None:
            _from_thread(pending.loop, _fail, pending.ended, _guard_problem(str(error)))
        else:
            _from_thread(pending.loop, _resolve, pending.ended, _result(header, payload))


def _result(header: Mapping[str, object], payload: bytes) -> CommandResult:
    code, length = header.get("exit_code"), int(str(header.get("stdout", 0)))
    return CommandResult(
        exit_code=None if code is None else int(str(code)),
        stdout=payload[:length],
        stderr=payload[length:],
        seconds=float(str(header.get("seconds", 0.0))),
        timed_out=bool(header.get("timed_out")),
        truncated=bool(header.get("truncated")),
    )


def _guard_problem(reason: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        "the process that runs commands is not available",
        code="MN-0208",
        reason=reason,
        hint="run it again; `mnemosyne resume` goes on where a run stopped",
    )


def _from_thread(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object) -> None:
    # Raised if the loop that asked is closed; then nobody waits for the answer.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


def _resolve(future: asyncio.Future[object], value: object) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[object], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        # Marked as seen: whoever waited may have been cancelled, and nobody else will look.
        future.exception()


@dataclass
class _Shared:
    """The guard of this process, made when it is first needed."""

    lock: Path | None = None
    interpreter: str | None = None
    guard: Guard | None = None
    mutex: threading.Lock = field(default_factory=threading.Lock)


_SHARED = _Shared()


def configure(*, lock: Path | None = None, interpreter: str | None = None) -> None:
    """Say how ``shared`` starts its guard; call it before the first use, it does not change a running one."""
    with _SHARED.mutex:
        _SHARED.lock, _SHARED.interpreter = lock, interpreter


def shared() -> Guard:
    """Return the guard of this process; started at first use, and again if it died.

    Raises:
        EnvironmentProblem: It cannot be started (MN-0208).
    """
    with _SHARED.mutex:
        if _SHARED.guard is None or not _SHARED.guard.alive:
            if _SHARED.guard is None:
                atexit.register(_close_shared)
            _SHARED.guard = Guard.start(lock=_SHARED.lock, interpreter=_SHARED.interpreter)
        return _SHARED.guard


def _close_shared() -> None:
    if _SHARED.guard is not None:
        _SHARED.guard.close_now()
