"""A program on the other side of the window: HTTP with the token, and the stream of events."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from command import Running, until

__all__ = ["Answer", "Message", "OpenWindow"]


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def code(self) -> str:
        """Of the refusal."""
        return str(self.json["error"]["code"])


@dataclass(frozen=True)
class Message:
    """One message of a stream."""

    name: str
    id: int | None
    data: Any


class OpenWindow:
    """A window that a command has opened, by the address and the token file that it named."""

    def __init__(self, address: str, token_file: Path) -> None:
        self.address, self.token_file = address, token_file
        self.host = urlsplit(address).netloc

    @classmethod
    def of(cls, running: Running) -> OpenWindow:
        """That of ``mnemosyne serve --json``."""
        until(lambda: running.text_lines() or running.process.poll() is not None, "it says where it listens")
        assert running.text_lines(), running.errors
        said = json.loads(running.text_lines()[0])
        return cls(said["url"], Path(said["token_file"]))

    @property
    def token(self) -> str:
        return self.token_file.read_text().split()[-1]

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> Answer:
        """Ask with the token, or with exactly the headers that are given."""
        connection = http.client.HTTPConnection(self.host, timeout=timeout)
        sent = {"Authorization": f"Bearer {self.token}"} if headers is None else dict(headers)
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read().decode())
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """The JSON of an endpoint that has an answer."""
        answer = self.ask("GET", path)
        assert answer.status == 200, answer
        return answer.json

    def post(self, path: str, body: object = None) -> Answer:
        return self.ask("POST", path, {} if body is None else body)

    def events(self, query: str = "", *, last: int | None = None, timeout: float = 60.0) -> Iterator[Message]:
        """The messages of a stream, until it ends or nothing comes for so long."""
        connection = http.client.HTTPConnection(self.host, timeout=timeout)
        headers = {"Authorization": f"Bearer {self.token}"}
        if last is not None:
            headers["Last-Event-ID"] = str(last)
        connection.request("GET", f"/events{query}", headers=headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        name, number = "", None
        try:
            while line := answer.readline().decode():
                key, _, value = line.rstrip("\n").partition(": ")
                if key == "event":
                    name = value
                elif key == "id":
                    number = int(value)
                elif key == "data":
                    yield Message(name, number, json.loads(value))
                    name, number = "", None
        finally:
            connection.close()
