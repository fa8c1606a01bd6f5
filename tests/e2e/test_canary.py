"""SECRET-1, whole: a key goes every way on which it could be said, and then no piece of it is anywhere.

Each way is a function that runs the real command, or a program, with the key, and returns what was printed. Afterwards
nothing in output, logs, events, store and trees holds eight characters of it in a row, nor did the argument list of any
process of the machine while it ran. To add a way, write a function and name it in ``WAYS``.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browsing import OpenWindow
from command import SECONDS, DemoServer, Finished, Sandbox
from messages_server import MessagesServer, failing

KEY = "canary-9c3a51e07bd2486f"
PIECES = [KEY[at : at + 8].encode() for at in range(len(KEY) - 7)]

TALKER = '''
import logging, os, sys
from mnemosyne import AgentExecutionMixin, create_agent


class Talker(AgentExecutionMixin):
    """Says its key in every way that an agent has, and does its work from then on."""

    seen = 0

    async def execute_work(self, work):
        key = self.config["api_key"]
        Talker.seen += 1
        logging.getLogger("mnemosyne.talker").debug("the key is %s", key)
        logging.getLogger("elsewhere").error({"headers": {"x": key}})
        self.context.progress(f"with {key}")
        if Talker.seen == 1:
            error = RuntimeError(f"refused: {key}", {"key": key})
            error.add_note(f"it was {key[:12]}")
            raise error from ValueError(key)
        if Talker.seen == 2:
            return {"success": False, "error": f"not with {key}"}
        return await create_agent("executor", self.config).execute_work(work)


class Crasher(AgentExecutionMixin):
    """Takes its process down with its key on its lips, and then answers."""

    async def execute_work(self, work):
        key = self.config["api_key"]
        if work["context"]["do"] == "crash":
            print(f"fatal: {key}", file=sys.stderr, flush=True)
            os._exit(3)
        if work["context"]["do"] == "raise":
            raise RuntimeError(f"no: {key}")
        return {"success": True}
'''

PROGRAM = """
import asyncio, sys, traceback
from pathlib import Path
from pydantic import SecretStr
from mnemosyne import AgentRole, AgentSpec, Orchestra, WorkItem
from mnemosyne.errors import MnemosyneError
from mnemosyne.logging_config import configure_logging
from talker import Crasher


async def main():
    configure_logging()
    agents = {AgentRole.EXECUTOR: AgentSpec(source=Crasher, isolation="process", instances=1)}
    key = SecretStr(sys.stdin.read())
    async with Orchestra(store=Path(sys.argv[1]), agents=agents, base_url=sys.argv[2], api_key=key) as orchestra:
        for do in ("raise", "crash", "answer"):
            about = {"id": do, "description": do, "phase": "plan_to_artifacts", "role": "executor"}
            work = await orchestra.submit_work(WorkItem(**about, context={"do": do}))
            async for event in orchestra.events():
                if event.item == do and event.kind in ("agent_failed", "agent_error_recorded", "work_completed"):
                    break
            print(orchestra.health())
            await work.cancel()
        [bridge] = [one for one in orchestra.agents() if one.role == "executor"]
        try:
            await bridge.send_work(WorkItem(**{**about, "id": "direct"}, context={"do": "crash"}))
        except MnemosyneError as error:
            print("".join(traceback.format_exception(error)))
        print(repr(orchestra))
        async for event in orchestra.events():
            print(event)
            if event.kind == "work_completed":
                break


asyncio.run(main())
"""


def refused(sandbox: Sandbox, _: DemoServer) -> Finished:
    """401, and the server quotes the key that it refuses."""
    said = f"invalid x-api-key: {KEY}, or {KEY[:10]}..."
    with MessagesServer(answer=lambda _: failing(401, "authentication_error", said)) as server:
        done = orchestrated(sandbox, "--base-url", server.url)
    assert "error[MN-0202]" in done.err
    assert "the key from --api-key-file" in done.err
    return done


def rejected(sandbox: Sandbox, _: DemoServer) -> Finished:
    """400, in whose words we pass on what the server said."""
    said = f"the header authorization: Bearer {KEY} is odd"
    with MessagesServer(answer=lambda _: failing(400, "invalid_request_error", said)) as server:
        done = orchestrated(sandbox, "--base-url", server.url)
    assert done.exit_code == 1
    assert "400 invalid_request_error" in done.err
    return done


def said_aloud(sandbox: Sandbox, server: DemoServer) -> Finished:
    """An agent that raises, logs, reports and returns it: debug log, error box, events, rejected attempts.

    The SDK logs what it sends, too.
    """
    flags = ["--base-url", server.url, "--agent", "executor=talker:Talker", "--max-concurrent", "1"]
    more = {**logging(sandbox), "ANTHROPIC_LOG": "debug"}
    done = sandbox.run("demo", "--workspace", str(sandbox.workspace), *flags, *common(sandbox), **more)
    assert done.exit_code == 0, done.err
    assert "Request options" in done.err
    log = (sandbox.root / "run.log").read_text()
    assert "the key is [hidden]" in log, "it was said"
    assert "error[MN-0301]: RuntimeError" in log, "the box"
    return done


def worker_crash(sandbox: Sandbox, server: DemoServer) -> Finished:
    """A worker process that raises, then dies, with it on stderr; given by the program that holds the orchestra."""
    (sandbox.root / "example.py").write_text(PROGRAM)
    words = [sys.executable, "example.py", str(sandbox.store), server.url]
    done = sandbox.run_words(words, given=KEY, **logging(sandbox))
    assert done.exit_code == 0, done.err
    assert "fatal: [hidden]" in done.out, "its last words were kept"
    return done


def commands(sandbox: Sandbox, server: DemoServer) -> Finished:
    """Commands of gates that print all that they can see; the key is in the environment of the run."""
    see = "env; cat /proc/self/environ /proc/$PPID/environ 2>/dev/null; python3 -m unittest tests.test_pricing"
    task = {"id": "t1", "title": "Finish shop.pricing", "file_scope": ["shop/pricing.py"]}
    plan = {"tasks": [{**task, "acceptance": [{"command": see}]}]}
    (sandbox.root / "plan.json").write_text(json.dumps(plan))
    sandbox.run_words(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; "
            "from mnemosyne.demo.sample import copy_sample; copy_sample(Path(sys.argv[1]))",
            str(sandbox.workspace),
        ]
    )
    flags = ["--plan", str(sandbox.root / "plan.json"), "--workspace", str(sandbox.workspace), "--debug", "--json"]
    more = {**logging(sandbox), "ANTHROPIC_API_KEY": KEY}
    done = sandbox.run("orchestrate", *flags, "--base-url", server.url, "--model", "demo", **more)
    shown = sandbox.run("show", done.summary["run"], "--evidence", "t1")
    assert "PATH=" in shown.out, "they were printed"
    return Finished(done.exit_code, done.out + shown.out, done.err + shown.err)


def doctor(sandbox: Sandbox, server: DemoServer) -> Finished:
    """The doctor and the commands about keys, from every place that a key is found in."""
    kept = sandbox.run_words(sandbox.command("config", "set-key"), given=KEY)
    assert kept.exit_code == 0, kept.err
    said = [kept, sandbox.run("doctor", "--json"), sandbox.run("doctor", "--json", ANTHROPIC_API_KEY=KEY)]
    said += [sandbox.run("doctor", "--json", *common(sandbox)), sandbox.run("secrets", "status", "--json")]
    said += [sandbox.run("config", "show-key", "--debug"), sandbox.run("doctor", HTTPS_PROXY=f"http://u:{KEY}@p:1")]
    said += [sandbox.run("config", "set-key", "--base-url", server.url, "--nonsense", "--debug")]
    assert "the age file" in said[1].out
    return Finished(0, "".join(one.out for one in said), "".join(one.err for one in said))


def window(sandbox: Sandbox, server: DemoServer) -> Finished:
    """All that the window answers about a run whose agent said it aloud; the window has the key in its environment."""
    done = said_aloud(sandbox, server)
    served = sandbox.start("serve", "--port", "0", "--json", "--debug", ANTHROPIC_API_KEY=KEY, **logging(sandbox))
    opened, run = OpenWindow.of(served), done.summary["run"]
    ways = [f"/runs/{run}", f"/runs/{run}/agents", "/runs", "/state", "/metrics", "/ready"]
    answers = [opened.ask("GET", path) for path in (*ways, "/events?since=0&follow=false", "/events?follow=false")]
    assert [answer.status for answer in answers] == [200] * len(ways[:-1]) + [503, 200, 200]
    assert "[hidden]" in answers[-2].text, "the events tell of it"
    said = "".join(answer.text + str(answer.headers) for answer in answers)
    return Finished(0, done.out + said + "".join(served.text_lines()), done.err + served.errors)


WAYS: list[Callable[[Sandbox, DemoServer], Finished]] = [
    refused,
    rejected,
    said_aloud,
    worker_crash,
    commands,
    doctor,
    window,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_secret_1_no_piece_of_a_key_is_anywhere_after(
    way: Callable[[Sandbox, DemoServer], Finished], sandbox: Sandbox, server: DemoServer
) -> None:
    (sandbox.root / "talker.py").write_text(TALKER)
    key = sandbox.root / "key"
    key.write_text(KEY)
    key.chmod(0o600)
    sandbox.workspace.mkdir()
    with arguments_seen() as arguments:
        done = way(sandbox, server)
    key.unlink()
    everything = {"output": done.out.encode(), "errors": done.err.encode(), "arguments": b"\n".join(arguments)}
    everything |= {str(path): path.read_bytes() for path in sandbox.root.rglob("*") if path.is_file()}
    found = {where for where, content in everything.items() if any(piece in content for piece in PIECES)}
    assert found == set()
    assert len(everything) > 3, "there was something to look at"


def orchestrated(sandbox: Sandbox, *flags: str) -> Finished:
    words = ["orchestrate", "do it", "--workspace", str(sandbox.workspace), *common(sandbox), *flags]
    return sandbox.run(*words, **logging(sandbox))


def common(sandbox: Sandbox) -> list[str]:
    return ["--api-key-file", str(sandbox.root / "key"), "--json", "--debug"]


def logging(sandbox: Sandbox) -> dict[str, str]:
    return {"MNEMOSYNE_LOG_FILE": str(sandbox.root / "run.log"), "MNEMOSYNE_LOG_LEVEL": "debug"}


@contextmanager
def arguments_seen() -> Iterator[set[bytes]]:
    """What the process list of the machine showed meanwhile."""
    seen: set[bytes] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    try:
                        seen.add((entry / "cmdline").read_bytes())
                    except OSError:
                        continue

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join(SECONDS)
