"""Bad input through the command line, Python and HTTP: refused with a code and a path, before it costs anything.

Whatever is given, the model's server sees no request, the store gets no row of it, and nobody sees a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from messages_server import MessagesServer
from mnemosyne import InvalidInput, Orchestra
from mnemosyne.cli import main

CASES = json.loads((Path(__file__).parents[1] / "shared" / "validation.json").read_text(encoding="utf-8"))
TASK = {"id": "t1", "title": "One", "acceptance": [{"command": "test -f one"}]}
PLANS = {case["name"]: case for case in CASES if case["kind"] == "plan" and case["errors"]}
ITEMS = {case["name"]: case for case in CASES if case["kind"] == "work_item" and case["errors"]}
FILES: dict[str, tuple[bytes, str]] = {
    "not JSON": (b'{"tasks": [', "MN-0102"),
    "Latin-1": ('{"tasks": [{"id": "ü"}]}'.encode("latin-1"), "MN-0102"),
    "UTF-16": ('{"tasks": []}'.encode("utf-16"), "MN-0102"),
    "a key twice": (b'{"tasks": [], "tasks": []}', "MN-0102"),
    "nested too deeply": (b"[" * 200_000, "MN-0102"),
    "NaN for seconds": (
        json.dumps({"tasks": [{**TASK, "acceptance": [{"command": "x", "timeout_seconds": float("nan")}]}]}).encode(),
        "MN-0103",
    ),
    "more than 10 MB": (json.dumps({"tasks": [{**TASK, "description": "x" * 10_000_000}]}).encode(), "MN-0102"),
    "20,000 dependencies": (
        json.dumps({"tasks": [{**TASK, "depends_on": [f"t{at}" for at in range(20_000)]}]}).encode(),
        "MN-0105",
    ),
}
FORMS: dict[bytes, str] = {
    b"": "MN-0102",
    b"[]": "MN-0715",
    b"{}": "MN-0715",
    b'{"workspace": WORKSPACE}': "MN-0715",
    b'{"workspace": WORKSPACE, "prompt": "a", "plan": {}}': "MN-0715",
    b'{"workspace": WORKSPACE, "prompt": 1}': "MN-0715",
    b'{"workspace": WORKSPACE, "prompt": "a", "budget_usd": 1}': "MN-0715",
    b'{"workspace": WORKSPACE, "prompt": "a", "budget": {"usd": "much"}}': "MN-0715",
    b'{"workspace": "somewhere", "prompt": "a"}': "MN-0107",
    b'{"workspace": "/nowhere/at/all", "prompt": "a"}': "MN-0107",
    b'{"workspace": "/tmp/a\\u0000b", "prompt": "a"}': "MN-0107",
    b'{"workspace": "/tmp/\\ud800", "prompt": "a"}': "MN-0107",
}
"""Bodies of requests over HTTP that have not their form, or name no workspace."""
PROMPTS: dict[str, tuple[bytes, str]] = {
    "10 MB of prompt": (b"x" * 10_000_000, "MN-0102"),
    "a NUL in the prompt": (b"make\0it", "MN-0102"),
    "a prompt that is no UTF-8": (b"\xff\xfe\x00", "MN-0102"),
    "a prompt of spaces": (b" \n\t", "MN-0101"),
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[MessagesServer]:
    with MessagesServer() as server:
        yield server


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MNEMOSYNE_STORE", str(tmp_path / "store.db"))
    (tmp_path / "workspace").mkdir()
    return tmp_path


def rows(store: Path) -> int:
    if not store.exists():
        return 0
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as database:
        return sum(database.execute(f"select count(*) from {name}").fetchone()[0] for name in ("runs", "items"))


def orchestrate(server: MessagesServer, *arguments: str) -> int:
    place = ["--workspace", "workspace", "--base-url", server.url, "--model", "demo", "--json"]
    return main(["orchestrate", *arguments, *place])


def refused(capsys: pytest.CaptureFixture[str], server: MessagesServer, exit_code: int, code: str, path: str) -> None:
    out, err = capsys.readouterr()
    assert (exit_code, server.seen, rows(Path("store.db"))) == (2, [], 0), err
    assert "Traceback" not in out + err
    assert err.startswith(f"error[{code}]: ")
    assert len(err) < 20_000, "a refusal is read by a person"
    summary = json.loads(out.splitlines()[-1])
    assert (summary["run"], summary["error"]["code"]) == (None, code)
    if path:
        assert path in [problem["path"] for problem in summary["error"]["problems"]]
        assert path in err


@pytest.mark.parametrize("name", PLANS)
def test_a_bad_plan_is_refused_on_the_command_line(
    capsys: pytest.CaptureFixture[str], server: MessagesServer, name: str
) -> None:
    Path("plan.json").write_text(json.dumps(PLANS[name]["value"]))
    code, path = PLANS[name]["errors"][0]
    refused(capsys, server, orchestrate(server, "--plan", "plan.json"), code, path)


@pytest.mark.parametrize("name", FILES)
def test_a_plan_that_is_none_is_refused_on_the_command_line(
    capsys: pytest.CaptureFixture[str], server: MessagesServer, name: str
) -> None:
    content, code = FILES[name]
    Path("plan.json").write_bytes(content)
    refused(capsys, server, orchestrate(server, "--plan", "plan.json"), code, "")


@pytest.mark.parametrize("name", PROMPTS)
def test_a_bad_prompt_is_refused_on_the_command_line(
    capsys: pytest.CaptureFixture[str], server: MessagesServer, name: str
) -> None:
    content, code = PROMPTS[name]
    Path("prompt.txt").write_bytes(content)
    refused(capsys, server, orchestrate(server, "@prompt.txt"), code, "")


async def test_the_same_is_refused_from_python_and_nothing_of_it_is_stored(server: MessagesServer, place: Path) -> None:
    async with Orchestra(store=place / "store.db", base_url=server.url, model="demo") as orchestra:

        async def submitted(what: Any) -> InvalidInput:
            with pytest.raises(InvalidInput) as caught:
                await orchestra.submit(what, workspace=place / "workspace")
            return caught.value

        for case in PLANS.values():
            if not isinstance(case["value"], str):  # from Python, text is a prompt
                error = await submitted(case["value"])
                assert [error.code, error.problems[0]["path"]] == case["errors"][0], case["name"]
        for content, code in PROMPTS.values():
            assert (await submitted(content.decode("utf-8", "surrogateescape"))).code == code
        for case in ITEMS.values():
            with pytest.raises(InvalidInput) as caught:
                await orchestra.submit_work(case["value"])
            assert [caught.value.code, caught.value.problems[0]["path"]] == case["errors"][0], case["name"]
    assert (server.seen, rows(place / "store.db")) == ([], 0)


async def test_the_same_is_refused_over_http_and_nothing_of_it_is_stored(server: MessagesServer, place: Path) -> None:
    from mnemosyne.window import Window

    opened: list[Orchestra] = []
    async with contextlib.AsyncExitStack() as stack:

        async def orchestra() -> Orchestra:
            if not opened:
                made = Orchestra(store=place / "store.db", base_url=server.url, model="demo")
                opened.append(await stack.enter_async_context(made))
            return opened[0]

        window = await stack.enter_async_context(Window(place / "store.db", 0, orchestra))
        workspace = json.dumps(str(place / "workspace")).encode()

        async def refused_over_http(path: str, body: bytes, code: str, at: str | None, what: str) -> None:
            status, error = await asyncio.to_thread(_post, window, path, body)
            assert 400 <= status < 500, what
            assert error["code"] == code, what
            if at is not None:
                assert at in [problem["path"] for problem in error["problems"]], what

        for case in PLANS.values():
            plan = json.dumps(case["value"], ensure_ascii=True).encode()
            code, at = case["errors"][0]
            body = b'{"workspace": %b, "plan": %b}' % (workspace, plan)
            await refused_over_http("/runs", body, code, at, case["name"])
        for name, (content, code) in FILES.items():
            body = b'{"workspace": %b, "plan": %b}' % (workspace, content)
            await refused_over_http("/runs", body, code, None, name)
        for name, (content, code) in PROMPTS.items():
            text = json.dumps(content.decode("utf-8", "surrogateescape")).encode()
            body = b'{"workspace": %b, "prompt": %b}' % (workspace, text)
            await refused_over_http("/runs", body, code, None, name)
        for case in ITEMS.values():
            code, at = case["errors"][0]
            body = b'{"item": %b}' % json.dumps(case["value"]).encode()
            await refused_over_http("/items", body, code, at, case["name"])
        for body, code in FORMS.items():
            await refused_over_http("/runs", body.replace(b"WORKSPACE", workspace), code, None, repr(body))
        assert opened == [], "nothing was opened for it"
    assert (server.seen, rows(place / "store.db")) == ([], 0)


def _post(window: Any, path: str, body: bytes) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(window.url.split("/")[2], timeout=60)
    try:
        name, _, token = window.token_file.read_text().strip().partition(": ")
        connection.request("POST", path, body, {name: token, "Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        assert "Traceback" not in text
        return answer.status, json.loads(text)["error"]
    finally:
        connection.close()


def test_there_are_enough_of_them() -> None:
    assert len(PLANS) + len(ITEMS) + len(FILES) + len(PROMPTS) >= 40
