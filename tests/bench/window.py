"""The window: the first snapshot of 10,000 events, what 100 clients that take nothing cost, `/health` beside 64 items.

Each figure stands beside one of the same process and run: a snapshot and a replay beside `/health`, which does nothing,
and a fast client beside itself without the slow ones.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from mnemosyne import AgentExecutionMixin, AgentRole, AgentSpec, Orchestra, WorkItem

ITEMS = 2_500
EVENTS = 10_000
SLOW = 100
IN_FLIGHT = 64
ROUNDS = 5
SLEEPER = """
import asyncio
from mnemosyne import AgentExecutionMixin
class Sleeper(AgentExecutionMixin):
    async def execute_work(self, work_dict):
        await asyncio.sleep(60)
        return {"success": True}
"""


class Echo(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, object]) -> dict[str, object]:
        return {"success": True}


async def fill(store: Path) -> None:
    """Give a store the events of some thousand items."""
    agents = {AgentRole.EXECUTOR: AgentSpec(source=Echo, instances=4)}
    async with Orchestra(store=store, agents=agents, model="demo") as orchestra:
        for first in range(0, ITEMS, 100):
            items = (item(f"i-{number}") for number in range(first, first + 100))
            works = await asyncio.gather(*(orchestra.submit_work(WorkItem.model_validate(one)) for one in items))
            await asyncio.gather(*(work.result() for work in works))


def item(name: str) -> dict[str, object]:
    return {"id": name, "description": "measure", "phase": "plan_to_artifacts", "role": "executor"}


class Served:
    """``mnemosyne serve`` in a process of its own."""

    def __init__(self, store: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "mnemosyne", "serve", "--port", "0", "--json", "--store", str(store), *flags]
        self.process = subprocess.Popen(command, cwd=store.parent, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        said = json.loads(self.process.stdout.readline())
        self.place = urlsplit(said["url"])
        self.header = Path(said["token_file"]).read_text().strip()

    def connect(self, method: str, path: str, body: str = "", buffer: int | None = None) -> socket.socket:
        stream = socket.socket()
        if buffer is not None:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        stream.connect((self.place.hostname, self.place.port))
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.place.netloc}\r\n{self.header}\r\nConnection: close\r\n"
        form = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        stream.sendall(f"{head}{form}\r\n{body}".encode())
        return stream

    def ask(self, method: str, path: str, body: str = "") -> bytes:
        with self.connect(method, path, body) as stream:
            return b"".join(iter(lambda: stream.recv(1 << 16), b""))

    def memory(self) -> float:
        """Megabytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()  # what sleeps is not waited for
            self.process.wait()


def timed(call: Callable[[], object]) -> float:
    """Milliseconds."""
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1000


def median(call: Callable[[], object]) -> float:
    return statistics.median(timed(call) for _ in range(ROUNDS))


def row(what: str, figure: str, beside: str = "") -> None:
    print(f"{what:<66}{figure:>12}   {beside}")


def looks(store: Path) -> None:
    served = Served(store)
    try:
        first = timed(lambda: served.ask("GET", "/events?follow=false"))
        floor = median(lambda: served.ask("GET", "/health"))
        again = median(lambda: served.ask("GET", "/events?follow=false"))
        row("the first snapshot after the start, with the fold of 10,000 events", f"{first:.1f} ms", "limit 200 ms")
        row("a snapshot after that", f"{again:.1f} ms", f"/health {floor:.1f} ms")

        def replay() -> None:
            count = served.ask("GET", "/events?follow=false&since=0").count(b"\nid: ")
            assert count >= EVENTS, count

        alone, before = median(replay), served.memory()
        slow = [served.connect("GET", "/events?since=0", buffer=4096) for _ in range(SLOW)]
        time.sleep(2)
        among, after = median(replay), served.memory()
        row(f"memory of {SLOW} clients that take nothing of 10,000 events", f"{after - before:.1f} MB", "limit 50 MB")
        row("a replay of 10,000 events beside them", f"{among:.0f} ms", f"alone {alone:.0f} ms: {among / alone:.2f}x")
        for stream in slow:
            stream.close()
    finally:
        served.close()


def works(folder: Path) -> None:
    (folder / "sleeper.py").write_text(SLEEPER)
    flags = ("--model", "demo", "--agent", "executor=sleeper:Sleeper", "--max-concurrent", str(IN_FLIGHT))
    served = Served(folder / "busy.db", *flags)
    try:
        idle = sorted(timed(lambda: served.ask("GET", "/health")) for _ in range(1_000))
        for number in range(IN_FLIGHT):
            assert b" 201 " in served.ask("POST", "/items", json.dumps({"item": item(f"s-{number}")}))
        while f'"running":{IN_FLIGHT}'.encode() not in served.ask("GET", "/ready"):
            time.sleep(0.1)
        busy = sorted(timed(lambda: served.ask("GET", "/health")) for _ in range(1_000))
        beside = f"idle {idle[990]:.1f} ms; limit 50 ms"
        row(f"/health beside {IN_FLIGHT} items in flight, p99 of 1,000", f"{busy[990]:.1f} ms", beside)
    finally:
        served.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        store = Path(name) / "store.db"
        asyncio.run(fill(store))
        looks(store)
        works(Path(name))


if __name__ == "__main__":
    os.environ["NO_PROXY"] = "127.0.0.1"
    main()
