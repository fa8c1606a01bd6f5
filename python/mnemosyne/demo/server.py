"""A loopback HTTP server that speaks the Messages API; behind it the demo model.

Run as ``python -m mnemosyne.demo.server --port 0 [--log FILE]`` it prints its base URL as the first line. With
``--log`` it appends one JSON line per request after the answer ended: ``at, method, path, body_sha256, status,
completed``; ``completed`` is false where the client went away before the answer was out.

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
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from mnemosyne.demo import wire
from mnemosyne.demo.model import answer
from mnemosyne.demo.wire import Block, RefusedError
from mnemosyne.errors import EnvironmentProblem

__all__ = ["DemoServer", "main", "serve"]

_MAX_BODY_BYTES = 32_000_000
_MAX_LINE_BYTES = 65_536
_MAX_HEADERS = 200
_IDLE_SECONDS = 600.0

_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed"}
_MODEL_CARD: Block = {
    "type": "model",
    "id": wire.MODEL,
    "display_name": "mnemosyne offline demo model",
    "created_at": "2026-11-01T00:00:00Z",
}


class _GoneError(Exception):
    """The client went away."""


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
    """One JSON object, or a stream of events."""

    status: int
    body: Block = field(default_factory=dict)
    events: Iterable[Block] | None = None


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
    return _Answer(200, events=wire.events(message)) if body.get("stream") else _Answer(200, message)


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
        completed = False
        try:
            self._send(request, reply, name)
            completed = True
        except (_GoneError, OSError):
            pass
        finally:
            self.server.record(request, reply.status, completed)
        return completed and request.keep_alive

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

    def _send(self, request: _Request, reply: _Answer, name: str) -> None:
        kind = "application/json" if reply.events is None else "text/event-stream; charset=utf-8"
        head = [
            f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Error')}",
            f"content-type: {kind}",
            f"request-id: {name}",
            f"connection: {'keep-alive' if request.keep_alive else 'close'}",
        ]
        if reply.events is None:
            data = json.dumps(reply.body, ensure_ascii=False).encode("utf-8", "replace")
            self._write(_head(head, f"content-length: {len(data)}") + (b"" if request.method == "HEAD" else data))
            return
        self._write(_head(head, "cache-control: no-cache", "transfer-encoding: chunked"))
        for event in reply.events:
            text = f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"
            data = text.encode("utf-8", "replace")
            self._write(b"%x\r\n%b\r\n" % (len(data), data))
        self._write(b"0\r\n\r\n")

    def _write(self, data: bytes) -> None:
        """Write, unless the client is gone: into a closed connection the first write always seems to succeed."""
        watch = select.poll()
        watch.register(self.connection, select.POLLIN)
        if watch.poll(0) and self.connection.recv(1, socket.MSG_PEEK) == b"":
            raise _GoneError
        self.connection.sendall(data)


def _head(lines: Iterable[str], *more: str) -> bytes:
    return ("\r\n".join([*lines, *more]) + "\r\n\r\n").encode("latin-1")


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


class DemoServer(socketserver.ThreadingTCPServer):
    """The server; a thread for each connection.

    Args:
        port: 0 for any free one.
        log: Gets a line per request, flushed at once.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int = 0, log: TextIO | None = None) -> None:
        super().__init__(("127.0.0.1", port), _Connection)
        self._log = log
        self._lock = threading.Lock()
        """Keeps the lines of the log whole."""

    @property
    def base_url(self) -> str:
        """Where it listens, without a path."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def record(self, request: _Request, status: int, completed: bool) -> None:
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
    options = parser.parse_args(argv)
    try:
        serve(options.port, options.log, lambda base_url: print(base_url, flush=True))
    except EnvironmentProblem as problem:
        print(problem.format(), file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    return 0


def serve(port: int, log: str | os.PathLike[str] | None, listens: Callable[[str], object]) -> None:
    """Serve until interrupted.

    Args:
        port: 0 for any free one.
        log: File that gets a line per request.
        listens: Told the base URL once it answers.

    Raises:
        EnvironmentProblem: It cannot start (MN-0211).
        KeyboardInterrupt: It was interrupted.
    """
    try:
        file = open(log, "a", encoding="utf-8") if log else None  # noqa: SIM115 (open while we serve)
    except OSError as error:
        raise _cannot_start(f"{log}: {error.strerror}", "choose another --log") from error
    try:
        server = DemoServer(port, file)
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
