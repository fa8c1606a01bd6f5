"""A proxy in a process of its own, between mnemosyne and a Messages server: it records, and kills at a chosen point.

Run as ``python recording_proxy.py --upstream URL --log FILE`` it prints its base URL. It holds every request until it
is told, with ``POST /arm``, what to do with the process that asks: let it be, or kill it at one of :data:`PLACES`. A
command of a tool says with ``POST /tool`` where it stands, which is how a process is killed between a tool's start
and its result. FILE gets one JSON line per request: ``sha256`` of the canonical body, whether it was ``forwarded``,
bytes ``relayed`` of ``total``, the ``usage`` in the answer, and the ``place`` where the process was killed, if it was.

:class:`RecordingProxy` starts it and talks to it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from mnemosyne.canonical import sha256_json

__all__ = ["PLACES", "RecordingProxy"]

PLACES = ("unsent", "unanswered", "early", "middle", "tool begun", "tool done", "last byte", "answered")
"""Where a process dies: its reservation is committed but the request goes no further; the server has the request; a
tenth or half of the answer has been read; a command of a tool has begun, or has done its work and is not over; all of
the answer but its last byte has been read, or all of it."""

_PARTS = {"early": 0.1, "middle": 0.5}
_SECONDS = 60.0  # a deadline, far more than anything here takes


@dataclass
class _Order:
    """What to do with one process: kill it at the ``nth`` request or command, at ``place``; None lets it be."""

    pid: int
    place: str | None
    nth: int


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, upstream: str, log: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.upstream = urlsplit(upstream).netloc
        self._log = log.open("a", encoding="utf-8")
        self._order: _Order | None = None
        self._changed = threading.Condition()

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # who was killed resets its connections
            super().handle_error(request, client_address)

    def arm(self, order: _Order) -> None:
        with self._changed:
            self._order = order
            self._changed.notify_all()

    def order_for(self, asking: socket.socket, *places: str) -> _Order | None:
        """Wait for an order and count this request or command for it; returns it if the process dies at this one.

        Raises:
            ConnectionAbortedError: Who asked was killed while it waited.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._order is not None, _SECONDS):
                raise TimeoutError("nobody said what to do with this process")
            if _is_gone(asking):
                raise ConnectionAbortedError
            order = self._order
            assert order is not None
            if order.place not in places:
                return None
            order.nth -= 1
            if order.nth:
                return None
            self._order = None  # nothing else happens before its end: whoever asks now waits for the next order
            return order

    def record(self, line: dict[str, Any]) -> None:
        with self._changed:
            self._log.write(json.dumps(line) + "\n")
            self._log.flush()


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def do_POST(self) -> None:
        size = int(self.headers.get("content-length", 0))
        raw = self.rfile.read(size)
        if len(raw) < size:  # its process was killed in the middle of asking
            self.close_connection = True
            return
        match self.path.split("?")[0]:
            case "/arm":
                self.server.arm(_Order(**json.loads(raw)))
                self._answer(200, "application/json", b"{}")
            case "/tool":
                if order := self.server.order_for(self.connection, str(json.loads(raw)["place"])):
                    os.kill(order.pid, signal.SIGKILL)  # and no answer: the command waits for its own end
                    return
                self._answer(200, "application/json", b"{}")
            case "/v1/messages":
                self._exchange(raw)
            case _:
                self._answer(*self._forward(raw))

    def do_GET(self) -> None:
        self._answer(*self._forward(b""))

    def _exchange(self, raw: bytes) -> None:
        line: dict[str, Any] = {"sha256": sha256_json(json.loads(raw)), "forwarded": False, "relayed": 0, "total": 0}
        order = self.server.order_for(self.connection, *(place for place in PLACES if not place.startswith("tool")))
        place = order.place if order is not None else None
        if place == "unsent":
            return self._end(line, order)
        status, kind, body = self._forward(raw)
        line |= {"forwarded": True, "total": len(body), "usage": _usage(body), "status": status}
        if place == "unanswered":
            return self._end(line, order)
        size = len(body) - 1 if place == "last byte" else int(_PARTS.get(place or "", 1.0) * len(body))
        try:
            self._answer(status, kind, body, size)
            line["relayed"] = size
            if order is not None:
                _wait_until_read(self.client_address, self.server.server_address)
        except OSError:  # its process was killed for another request
            self.close_connection = True
        return self._end(line, order)

    def _end(self, line: dict[str, Any], order: _Order | None) -> None:
        self.server.record({**line, "place": order.place if order is not None else None})
        if order is not None:
            self.close_connection = True
            os.kill(order.pid, signal.SIGKILL)

    def _forward(self, raw: bytes) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=_SECONDS)
        try:
            kept = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
            connection.request(self.command, self.path, raw, kept)
            response = connection.getresponse()
            return response.status, response.headers.get("content-type", ""), response.read()
        finally:
            connection.close()

    def _answer(self, status: int, kind: str, body: bytes, size: int | None = None) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:size])
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        pass


def _is_gone(asking: socket.socket) -> bool:
    try:
        return not asking.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _usage(body: bytes) -> dict[str, int]:
    """What a stream says that it cost; later counts replace earlier ones."""
    counts: dict[str, int] = {}
    for line in body.decode("utf-8").splitlines():
        if line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            usage = event.get("usage") or event.get("message", {}).get("usage") or {}
            counts |= {name: count for name, count in usage.items() if isinstance(count, int)}
    return counts


def _wait_until_read(client: tuple[str, int], server: tuple[Any, ...]) -> None:
    """Until the process at the other end has taken everything out of its socket: then the bytes count as arrived."""
    ends = f"{_end_point(client)} {_end_point(server)} "
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        lines = Path("/proc/net/tcp").read_text().splitlines()
        queues = [line.split()[4] for line in lines if ends in line]
        if not queues or queues[0].endswith(":00000000"):
            return
        time.sleep(0.001)


def _end_point(address: tuple[Any, ...]) -> str:
    return f"{socket.inet_aton(address[0])[::-1].hex().upper()}:{address[1]:04X}"


class RecordingProxy:
    """The proxy's process, seen from a test."""

    _command: ClassVar[list[str]] = [sys.executable, str(Path(__file__).resolve())]

    def __init__(self, upstream: str, log: Path, environment: dict[str, str]) -> None:
        self._log = log
        self._process = subprocess.Popen(
            [*self._command, "--upstream", upstream, "--log", str(log)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def arm(self, pid: int, place: str | None, nth: int = 1) -> None:
        """Say what to do with the process; requests that came before wait for this."""
        body = json.dumps({"pid": pid, "place": place, "nth": nth}).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(f"{self.url}/arm", body), timeout=_SECONDS) as answer:
            answer.read()

    def requests(self) -> Iterator[dict[str, Any]]:
        """What was seen so far, in order."""
        return map(json.loads, self._log.read_text().splitlines())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--log", type=Path, required=True)
    options = parser.parse_args()
    with _Proxy(options.upstream, options.log) as proxy:
        print(f"http://127.0.0.1:{proxy.server_address[1]}", flush=True)
        proxy.serve_forever()


if __name__ == "__main__":
    main()
