"""Clients of the window that take little or nothing cost little, and hold up nobody."""

from __future__ import annotations

import socket
from pathlib import Path

from browsing import OpenWindow
from command import Sandbox, until

SLOW = 100
EVENTS = 10_000
MOST_MEMORY = 50.0
FILL = """
import asyncio
from mnemosyne import AgentExecutionMixin, AgentRole, AgentSpec, Orchestra, WorkItem

class Echo(AgentExecutionMixin):
    async def execute_work(self, work_dict):
        return {"success": True}

async def main():
    agents = {AgentRole.EXECUTOR: AgentSpec(source=Echo, instances=4)}
    about = {"description": "fill", "phase": "plan_to_artifacts", "role": "executor"}
    async with Orchestra(agents=agents, model="demo") as orchestra:
        for first in range(0, 2_500, 100):
            items = [WorkItem(id=f"i-{number}", **about) for number in range(first, first + 100)]
            works = await asyncio.gather(*map(orchestra.submit_work, items))
            await asyncio.gather(*(work.result() for work in works))

asyncio.run(main())
"""


def memory(pid: int) -> float:
    """Megabytes."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def sequences(window: OpenWindow) -> list[int]:
    return [message.id or 0 for message in window.events("?since=0&follow=false")]


def test_a_hundred_clients_that_take_nothing_cost_under_50_mb_and_a_fast_one_sees_all(sandbox: Sandbox) -> None:
    filled = sandbox.run_python(FILL, 300)
    assert filled.returncode == 0, filled.stderr
    serving = sandbox.start("serve", "--port", "0", "--json")
    window = OpenWindow.of(serving)
    seen = sequences(window)
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) >= EVENTS
    before = memory(serving.process.pid)
    slow = [stuck(window) for _ in range(SLOW)]
    until(lambda: f"mnemosyne_streams {SLOW}\n" in window.ask("GET", "/metrics").text, "all are there")
    assert sequences(window) == seen
    assert memory(serving.process.pid) - before < MOST_MEMORY
    for client in slow:
        client.close()
    until(lambda: "mnemosyne_streams 0\n" in window.ask("GET", "/metrics").text, "all are gone")


def stuck(window: OpenWindow) -> socket.socket:
    """A client that asks for everything and takes nothing of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = window.host.split(":")
    client.connect((host, int(port)))
    header = window.token_file.read_text().strip()
    client.sendall(f"GET /events?since=0 HTTP/1.1\r\nHost: {window.host}\r\n{header}\r\n\r\n".encode())
    return client
