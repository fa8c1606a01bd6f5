"""A real loopback HTTP server with scripted answers, for tests of the way to the model.

Nothing in the client is replaced: the SDK, its HTTP layer and the socket are the real ones.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from mnemosyne.canonical import sha256_json

__all__ = ["MessagesServer", "Reply", "failing", "saying", "stream", "thinking_then", "using"]

Event = dict[str, Any]


@dataclass
class Reply:
    """One answer.

    ``ending``: ``whole`` sends everything; ``cut`` ends the body cleanly after the events given; ``drop`` closes the
    connection in the middle of the body; ``silent`` says nothing more until the client goes away.
    ``silence``: Seconds before the status line. ``pause``: Seconds before each event.
    """

    status: int = 200
    events: list[Event] | None = None
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    ending: str = "whole"
    silence: float = 0.0
    pause: float = 0.0


@dataclass
class Seen:
    """One request that arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    body_sha256: str


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may go away whenever it likes
            super().handle_error(request, client_address)


class MessagesServer:
    """Answers ``POST /v1/messages`` from a script, in order; when it is empty, with ``answer(body)``."""

    def __init__(self, *script: Reply, answer: Callable[[dict[str, Any]], Reply] | None = None) -> None:
        self.script = list(script)
        self.answer = answer
        self.seen: list[Seen] = []
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _next(self, body: dict[str, Any]) -> Reply:
        if self.script:
            return self.script.pop(0)
        if self.answer is not None:
            return self.answer(body)
        return failing(400, "invalid_request_error", "the script is empty")

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["content-length"]))
                body = json.loads(raw)
                outer.seen.append(Seen(self.path, dict(self.headers.items()), body, sha256_json(body)))
                self._send(outer._next(body))

            def _send(self, reply: Reply) -> None:
                time.sleep(reply.silence)
                self.send_response(reply.status)
                self.send_header("request-id", "req_test")
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.events is None:
                    self.send_header("content-type", reply.content_type)
                    self.send_header("content-length", str(len(reply.body)))
                    self.end_headers()
                    self.wfile.write(reply.body)
                    return
                self.send_header("content-type", "text/event-stream")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for event in reply.events:
                    time.sleep(reply.pause)
                    data = event["raw"] if "raw" in event else f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
                    self._chunk(data.encode("utf-8"))
                if reply.ending == "silent":
                    self.wfile.flush()
                    while self.connection.recv(1024):
                        pass
                    self.close_connection = True
                    return
                if reply.ending == "drop":
                    self.wfile.flush()
                    self.close_connection = True
                    return
                self._chunk(b"")

            def _chunk(self, data: bytes) -> None:
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def stream(
    blocks: list[dict[str, Any]], stop_reason: str, *, input_tokens: int = 100, output_tokens: int = 20
) -> list[Event]:
    """Return the events of a whole answer; text and tool input come in two pieces each."""
    message: Event = {
        "id": "msg_test", "type": "message", "role": "assistant", "model": "demo", "content": [], "stop_reason": None,
        "stop_sequence": None, "usage": {"input_tokens": input_tokens, "output_tokens": 1,
                                         "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2},
    }  # fmt: skip
    events: list[Event] = [{"type": "message_start", "message": message}, {"type": "ping"}]
    for index, block in enumerate(blocks):
        start, deltas = _pieces(block)
        events.append({"type": "content_block_start", "index": index, "content_block": start})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": output_tokens}})
    events.append({"type": "message_stop"})
    return events


def _pieces(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    match block["type"]:
        case "text":
            half = len(block["text"]) // 2
            pieces = [block["text"][:half], block["text"][half:]]
            return {"type": "text", "text": ""}, [{"type": "text_delta", "text": piece} for piece in pieces]
        case "tool_use":
            text = json.dumps(block["input"])
            pieces = [text[: len(text) // 2], text[len(text) // 2 :]]
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        case "thinking":
            deltas = [
                {"type": "thinking_delta", "thinking": block["thinking"]},
                {"type": "signature_delta", "signature": block["signature"]},
            ]
            return {"type": "thinking", "thinking": "", "signature": ""}, deltas
        case _:
            return block, []


def saying(text: str, stop_reason: str = "end_turn", **usage: int) -> Reply:
    """An answer of text."""
    return Reply(events=stream([{"type": "text", "text": text}], stop_reason, **usage))


def using(*calls: tuple[str, str, dict[str, Any]]) -> Reply:
    """An answer that calls tools, each ``(id, name, input)``."""
    blocks = [{"type": "tool_use", "id": identifier, "name": name, "input": given} for identifier, name, given in calls]
    return Reply(events=stream(blocks, "tool_use"))


def thinking_then(*blocks: dict[str, Any], stop_reason: str) -> Reply:
    """An answer that begins with a signed thinking block."""
    thinking = {"type": "thinking", "thinking": "let me see", "signature": "c2lnbmF0dXJl"}
    return Reply(events=stream([thinking, *blocks], stop_reason))


def failing(status: int, kind: str, message: str = "no", **headers: str) -> Reply:
    """An error answer in the API's form."""
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_test"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status=status, body=json.dumps(body).encode(), headers=named)
