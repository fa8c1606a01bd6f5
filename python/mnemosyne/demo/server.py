"""A loopback HTTP server that speaks the Messages API; behind it the demo model.

Run as ``python -m mnemosyne.demo.server --port 0 [--log FILE] [--faults FILE]`` it prints its base URL as the first
line. With ``--log`` it appends one JSON line per request after the answer ended: ``at, method, path, body_sha256,
status, completed, fault``. ``completed`` is false where not the whole answer went out; ``fault`` is the name of the
fault that ``--faults`` (``faults``) made it give, else null; ``status`` is 0 without an answer.

Only light modules of the standard library are imported (threads, not asyncio or ``http.server``: that is 15 MB and
100 ms less), because every run of the demo waits for this process.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn, TextIO

from mnemosyne.demo import faults, wire
from mnemosyne.demo.faults import Fault, FaultScript
from mnemosyne.demo.model import answer
from mnemosyne.demo.wire import Block, RefusedError
from mnemosyne.errors import EnvironmentProblem, InvalidInput

__all__ = ["DemoServer", "main", "serve"]

_MAX_BODY_BYTES = 32_000_000
_MAX_LINE_BYTES = 65_536
_MAX_HEADERS = 200
_IDLE_SECONDS = 600.0
_PIECES_PER_SECOND = 20
"""Of a slow answer."""

_LAST_CHUNK = b"0\r\n\r\n"
_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed"}
_MODEL_CARD: Block = {
    "type": "model",
    "id": wire.MODEL,
    "display_name": "mnemosyne offline demo model",
    "created_at": "2026-11-01T00:00:00Z",
}


class _EndedError(Exception):
    """The connection ends here: the client went away, or a fault ends it."""


@dataclass
class _Request:
    """One HTTP request.

    Attributes:
        body: The parsed JSON, or None.
        problem: Why the body could not be read, if so.
        keep_alive: Whether the connection can be used again.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: object = None
    problem: RefusedError | None = None
    keep_alive: bool = True


@dataclass(frozen=True)
class _Answer:
    """One JSON object, a message told as a stream of events, or a page that is no JSON at all."""

    status: int
    body: Block = field(default_factory=dict)
    streamed: bool = False
    headers: Sequence[str] = ()
    page: bytes | None = None

    @property
    def is_message(self) -> bool:
        return self.status == 200 and self.body.get("type") == "message"


def _answer(request: _Request, name: str) -> _Answer:
    try:
        return _route(request)
    except RefusedError as refused:
        problem = refused
    except Exception as error:  # a thread that dies would look like a broken network
        problem = RefusedError(f"the demo model failed: {type(error).__name__}: {error}", 500, "api_error")
    return _Answer(problem.status, wire.error_body(problem, name))


def _route(request: _Request) -> _Answer:
    path = request.path.split("?")[0]
    allowed = {"/v1/messages": "POST", "/v1/messages/count_tokens": "POST", "/v1/models": "GET"}
    allowed[f"/v1/models/{wire.MODEL}"] = "GET"
    if path not in allowed:
        raise RefusedError(f"Not Found: {path}", 404, "not_found_error")
    if request.method != allowed[path]:
        raise RefusedError(f"Method Not Allowed: {request.method}", 405)
    _check_credentials(request.headers)
    version = request.headers.get("anthropic-version", "")
    if version not in wire.VERSIONS:
        raise RefusedError(f"anthropic-version: one of {', '.join(wire.VERSIONS)} is required, not {version!r}")
    if path == "/v1/models":
        return _Answer(200, {"data": [_MODEL_CARD], "has_more": False, "first_id": wire.MODEL, "last_id": wire.MODEL})
    if request.method == "GET":
        return _Answer(200, _MODEL_CARD)
    if request.problem:
        raise request.problem
    counting = path.endswith("/count_tokens")
    body = wire.check_request(request.body, version, counting=counting)
    if counting:
        return _Answer(200, {"input_tokens": wire.input_tokens(body)})
    message = wire.message(body, answer(body), wire.digest(request.body)[:24])
    return _Answer(200, message, streamed=bool(body.get("stream")))


def _with_fault(fault: Fault, reply: _Answer, request: _Request, name: str) -> _Answer:
    """The answer that a fault leaves of ``reply``, where it changes what is answered and not only how."""
    if fault.kind == "status":
        return _Answer(fault.status, wire.error_body(faults.error(fault), name), headers=list(faults.headers(fault)))
    if fault.kind == "page":
        return _Answer(200, page=b"<!doctype html><title>Sign in</title><p>Sign in to use this network.</p>")
    if reply.is_message and isinstance(request.body, dict):
        return replace(reply, body=faults.alter(fault, reply.body, request.body))
    return reply


def _check_credentials(headers: Mapping[str, str]) -> None:
    """Any key will do, but there must be one: a client that forgets to send it would fail only later, elsewhere."""
    bearer = headers.get("authorization", "")
    if headers.get("x-api-key") or (bearer.lower().startswith("bearer ") and bearer[7:].strip()):
        return
    raise RefusedError("x-api-key or Authorization: Bearer header is required", 401, "authentication_error")


class _Connection(socketserver.StreamRequestHandler):
    """One connection: requests one after the other until either side ends it."""

    server: DemoServer
    timeout = _IDLE_SECONDS
    disable_nagle_algorithm = True
    _sent_head = False
    """Whether the client has the status of the present answer."""

    def handle(self) -> None:
        try:
            while (request := self._read()) is not None:
                if not self._exchange(request):
                    return
        except OSError:
            return

    def _exchange(self, request: _Request) -> bool:
        """Answer one request and record it; returns whether the connection goes on."""
        name = f"req_{os.urandom(12).hex()}"
        reply = _answer(request, name)
        fault = self._fault(request, reply)
        if fault is not None:
            reply = _with_fault(fault, reply, request, name)
        completed = False
        self._sent_head = False
        try:
            self._send(request, reply, name, fault)
            completed = True
        except (_EndedError, OSError):
            pass
        finally:
            self.server.record(request, reply.status if self._sent_head else 0, completed, fault)
        return completed and request.keep_alive

    def _fault(self, request: _Request, reply: _Answer) -> Fault | None:
        script = self.server.faults
        if script is None or not isinstance(request.body, dict):
            return None
        return script.pick(request.path.split("?")[0], request.body, answered=reply.is_message)

    # -- reading ---------------------------------------------------------------------------------------------------

    def _read(self) -> _Request | None:
        line = self.rfile.readline(_MAX_LINE_BYTES).decode("latin-1").strip()
        if not line:
            return None
        words = line.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _Request(line[:8], "", {}, problem=RefusedError("not an HTTP/1.1 request"), keep_alive=False)
        headers = dict(self._headers())
        request = _Request(words[0], words[1], headers)
        request.keep_alive = words[2] == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
        try:
            request.body = self._body(headers)
        except RefusedError as problem:
            request.problem, request.keep_alive = problem, request.keep_alive and problem.status == 400
        return request

    def _headers(self) -> Iterator[tuple[str, str]]:
        for _ in range(_MAX_HEADERS):
            name, colon, value = self.rfile.readline(_MAX_LINE_BYTES).decode("latin-1").partition(":")
            if not colon:
                return
            yield name.strip().lower(), value.strip()

    def _body(self, headers: Mapping[str, str]) -> object:
        length = headers.get("content-length", "")
        if "transfer-encoding" in headers or not (length.isdigit() or length == ""):
            raise RefusedError("a Content-Length is required", 411)
        if int(length or 0) > _MAX_BODY_BYTES:
            raise RefusedError("Request exceeds the maximum size", 413, "request_too_large")
        if headers.get("expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        data = self.rfile.read(int(length or 0))
        if len(data) < int(length or 0):
            raise ConnectionResetError
        try:
            return json.loads(data, parse_constant=_refuse_constant) if data else None
        except (ValueError, RecursionError) as error:
            raise RefusedError(f"The request body is not valid JSON: {error}") from error

    # -- writing ---------------------------------------------------------------------------------------------------

    def _send(self, request: _Request, reply: _Answer, name: str, fault: Fault | None) -> None:
        kind = fault.kind if fault is not None else ""
        if kind == "hang":
            self._wait_until_gone()
        if kind == "reset":
            self._reset()
        pieces = _pieces(reply, fault, name)
        self._write(_head(request, reply, name, sum(map(len, pieces))))
        self._sent_head = True
        if request.method == "HEAD":
            return
        if fault is not None and kind in ("stall", "cut"):
            self._send_beginning(pieces, reply, fault)
        pace = fault.bytes_per_second if fault is not None and kind == "slow" else None
        for piece in pieces if pace is None else _drops(pieces, pace):
            self._write(_framed(piece, reply))
            if pace is not None:
                self._wait_until_gone(len(piece) / pace)
        if reply.streamed:
            self._write(_LAST_CHUNK)

    def _send_beginning(self, pieces: Sequence[bytes], reply: _Answer, fault: Fault) -> NoReturn:
        length = fault.after_bytes if fault.after_bytes >= 0 else max(0, sum(map(len, pieces)) + fault.after_bytes)
        for piece in pieces:
            if beginning := piece[:length]:
                self._write(_framed(beginning, reply))
            length -= len(beginning)
        if fault.kind == "stall":
            self._wait_until_gone()
        if fault.ending == "reset":
            self._reset()
        if fault.ending == "clean" and reply.streamed:
            self._write(_LAST_CHUNK)
        raise _EndedError

    def _write(self, data: bytes) -> None:
        """Write, unless the client is gone: into a closed connection the first write always seems to succeed."""
        watch = select.poll()
        watch.register(self.connection, select.POLLIN)
        if watch.poll(0) and self.connection.recv(1, socket.MSG_PEEK) == b"":
            raise _EndedError
        self.connection.sendall(data)

    # -- ending ----------------------------------------------------------------------------------------------------

    def _wait_until_gone(self, seconds: float | None = None) -> None:
        """Send nothing for so long, or for ever; ends early, by raising, when the client goes away."""
        # Not by reading: a client may have sent its next request already.
        watch = select.poll()
        watch.register(self.connection, select.POLLRDHUP)
        if watch.poll(None if seconds is None else seconds * 1000):
            raise _EndedError

    def _reset(self) -> NoReturn:
        """End the connection as a crashed machine's would: not by a goodbye but by a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Detached, since closing the socket object would wait for the files that were made of it.
        os.close(self.connection.detach())
        raise _EndedError


def _head(request: _Request, reply: _Answer, name: str, length: int) -> bytes:
    kind = "text/event-stream; charset=utf-8" if reply.streamed else "application/json"
    lines = [
        f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Error')}",
        f"content-type: {kind if reply.page is None else 'text/html'}",
        f"request-id: {name}",
        f"connection: {'keep-alive' if request.keep_alive else 'close'}",
        *reply.headers,
        *(
            ("cache-control: no-cache", "transfer-encoding: chunked")
            if reply.streamed
            else (f"content-length: {length}",)
        ),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _framed(piece: bytes, reply: _Answer) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece) if reply.streamed else piece


def _pieces(reply: _Answer, fault: Fault | None, name: str) -> list[bytes]:
    """The body of an answer: a piece for each event, or one."""
    if reply.page is not None:
        return [reply.page]
    if reply.streamed:
        return list(faults.stream(fault, wire.events(reply.body), name))
    return [json.dumps(reply.body, ensure_ascii=False).encode("utf-8", "replace")]


def _drops(pieces: Iterable[bytes], bytes_per_second: int) -> list[bytes]:
    """The same bytes in pieces so small that their pace is even."""
    size = max(1, bytes_per_second // _PIECES_PER_SECOND)
    body = b"".join(pieces)
    return [body[start : start + size] for start in range(0, len(body), size)]


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


class DemoServer(socketserver.ThreadingTCPServer):
    """The server; a thread for each connection.

    Args:
        port: 0 for any free one.
        log: Gets a line per request, flushed at once.
        script: What goes wrong on purpose.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int = 0, log: TextIO | None = None, script: FaultScript | None = None) -> None:
        super().__init__(("127.0.0.1", port), _Connection)
        self.faults = script
        self._log = log
        self._lock = threading.Lock()
        """Keeps the lines of the log whole."""

    @property
    def base_url(self) -> str:
        """Where it listens, without a path."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def record(self, request: _Request, status: int, completed: bool, fault: Fault | None) -> None:
        """Append one line to the log."""
        if self._log is None:
            return
        seconds = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        line = {
            "at": f"{stamp}.{int(seconds * 1000) % 1000:03d}Z",
            "method": request.method,
            "path": request.path,
            "body_sha256": None if request.body is None else wire.digest(request.body),
            "status": status,
            "completed": completed,
            "fault": None if fault is None else fault.kind,
        }
        with self._lock:
            self._log.write(json.dumps(line) + "\n")
            self._log.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="mnemosyne demo serve", description="Serve the offline demo model on loopback."
    )
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1; 0 (default) takes any free one")
    parser.add_argument("--log", metavar="FILE", help="append a JSON line per request to FILE")
    parser.add_argument("--faults", metavar="FILE", help="a fault script: what goes wrong on purpose")
    options = parser.parse_args(argv)
    try:
        serve(options.port, options.log, options.faults, lambda base_url: print(base_url, flush=True))
    except (EnvironmentProblem, InvalidInput) as problem:
        print(problem.format(), file=sys.stderr)
        return 2 if isinstance(problem, InvalidInput) else 3
    except KeyboardInterrupt:
        return 130
    return 0


_Path = str | os.PathLike[str]


def serve(port: int, log: _Path | None, script: _Path | None, listens: Callable[[str], object]) -> None:
    """Serve until interrupted.

    Args:
        port: 0 for any free one.
        log: File that gets a line per request.
        script: File that says what goes wrong on purpose.
        listens: Told the base URL once it answers.

    Raises:
        InvalidInput: The script cannot be used (MN-0160, MN-0161); nothing was written or opened yet.
        EnvironmentProblem: It cannot start (MN-0211).
        KeyboardInterrupt: It was interrupted.
    """
    wrong = None if script is None else faults.load(script)
    try:
        file = open(log, "a", encoding="utf-8") if log else None  # noqa: SIM115 (open while we serve)
    except OSError as error:
        raise _cannot_start(f"{log}: {error.strerror}", "choose another --log") from error
    try:
        server = DemoServer(port, file, wrong)
    except (OSError, OverflowError) as error:
        reason = f"port {port}: {getattr(error, 'strerror', None) or error}"
        raise _cannot_start(reason, "choose another --port, or 0 for any free one") from error
    with server:
        listens(server.base_url)
        server.serve_forever()


def _cannot_start(reason: str, hint: str) -> EnvironmentProblem:
    return EnvironmentProblem("the demo server cannot start", code="MN-0211", reason=reason, hint=hint)


if __name__ == "__main__":
    sys.exit(main())
