"""Bad input and a bad world: one clear error, the right exit code, and a store that still opens."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import subprocess
from pathlib import Path

import pytest
from command import DemoServer, Finished, Sandbox, until
from messages_server import MessagesServer, failing, saying

KEY = "sk-test-do-not-print-me"
TASK = {"title": "One", "acceptance": [{"command": "test -f one"}]}


@pytest.fixture(autouse=True)
def workspace(sandbox: Sandbox) -> Path:
    sandbox.workspace.mkdir()
    (sandbox.workspace / "notes.txt").write_text("nothing yet\n")
    return sandbox.workspace


def orchestrate(sandbox: Sandbox, *arguments: str, **environment: str) -> Finished:
    place = ["--workspace", str(sandbox.workspace), "--json"]
    return sandbox.run("orchestrate", *arguments, *place, **environment)


def is_refused(sandbox: Sandbox, refused: Finished, exit_code: int, code: str, *, orphans: bool = False) -> None:
    assert refused.exit_code == exit_code, refused.err
    assert refused.summary["error"]["code"] == code
    assert f"error[{code}]: " in refused.err
    assert "hint: " in refused.err
    assert "Traceback" not in refused.err + refused.out
    assert sandbox.run("runs").exit_code == 0
    assert orphans or not sandbox.orphans()


def test_secret_1_a_refused_key_is_exit_3_resumable_and_never_printed(sandbox: Sandbox) -> None:
    said = f"invalid x-api-key {KEY[:10]}"
    with MessagesServer(answer=lambda _: failing(401, "authentication_error", said)) as server:
        flags = ["Write a poem", "--model", "demo", "--base-url", server.url]
        refused = orchestrate(sandbox, *flags, ANTHROPIC_API_KEY=KEY)
    is_refused(sandbox, refused, 3, "MN-0202")
    assert refused.summary["state"] == "interrupted"
    assert refused.summary["resume"]
    run = refused.summary["run"]
    everything = refused.out + refused.err + sandbox.run("events", run, "--json").out
    stored = b"".join(path.read_bytes() for path in sandbox.store.parent.rglob("*") if path.is_file())
    assert KEY[:10] not in everything
    assert KEY[:10].encode() not in stored


def test_no_credential_is_exit_3_with_the_ways_out_and_the_demo_is_not_substituted(sandbox: Sandbox) -> None:
    refused = orchestrate(sandbox, "Write a poem")
    is_refused(sandbox, refused, 3, "MN-0201")
    assert refused.summary["run"] is None
    for way in ("ANTHROPIC_API_KEY", "--base-url", "mnemosyne demo"):
        assert way in refused.err


def test_a_base_url_that_does_not_answer_is_exit_3_and_resumable(sandbox: Sandbox, server: DemoServer) -> None:
    with socket.socket() as free:  # bound and never listening: nobody else gets the port meanwhile
        free.bind(("127.0.0.1", 0))
        refused = orchestrate(
            sandbox, "Write a poem", "--model", "demo", "--base-url", f"http://127.0.0.1:{free.getsockname()[1]}"
        )
    is_refused(sandbox, refused, 3, "MN-0205")
    assert refused.summary["state"] == "interrupted"
    assert refused.summary["resume"]


def test_prose_where_json_is_due_fails_the_run(sandbox: Sandbox) -> None:
    with MessagesServer(answer=lambda _: saying("Sure! I would be happy to help with that.")) as server:
        refused = orchestrate(sandbox, "Write a poem", "--model", "demo", "--base-url", server.url)
    assert (refused.exit_code, refused.summary["state"]) == (1, "failed")
    assert refused.summary["error"]["message"]
    assert refused.summary["phases"][0]["state"] == "failed"
    assert sandbox.run("runs").exit_code == 0


def test_the_demo_model_refuses_what_it_cannot_do_and_says_what_it_can(sandbox: Sandbox, server: DemoServer) -> None:
    refused = orchestrate(sandbox, "Write a poem about ships", "--model", "demo", "--base-url", server.url)
    assert (refused.exit_code, refused.summary["state"]) == (1, "failed")
    assert "demo" in json.dumps(refused.summary["error"]).lower()
    assert [path.name for path in sandbox.workspace.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("tasks", "code"),
    [
        ([{"id": "a", "depends_on": ["b"], **TASK}, {"id": "b", "depends_on": ["a"], **TASK}], "MN-0104"),
        ([{"id": "a", "depends_on": ["nothing"], **TASK}], "MN-0105"),
        ([{"id": "a", **TASK}, {"id": "a", **TASK}], "MN-0106"),
        ([{"id": "a", "file_scope": ["../other"], **TASK}], "MN-0103"),
    ],
    ids=["cycle", "dangling", "duplicate", "scope"],
)
def test_a_plan_that_could_never_be_finished_is_refused_and_nothing_is_stored(
    sandbox: Sandbox, tasks: list[object], code: str
) -> None:
    (sandbox.root / "plan.json").write_text(json.dumps({"tasks": tasks}))
    refused = orchestrate(sandbox, "--plan", "plan.json", "--model", "demo")
    is_refused(sandbox, refused, 2, code)
    assert refused.summary["run"] is None
    assert sandbox.run("runs", "--json").lines == []


def test_a_nested_repository_is_refused_by_name(sandbox: Sandbox) -> None:
    nested = sandbox.workspace / "vendored"
    subprocess.run(["git", "init", "--quiet", str(nested)], check=True)
    refused = orchestrate(sandbox, "Write a poem", "--model", "demo")
    is_refused(sandbox, refused, 2, "MN-0108")
    assert "vendored" in refused.err


@pytest.mark.parametrize("kind", ["text", "database", "folder"])
def test_a_store_that_is_not_ours_is_exit_3_and_stays_as_it_is(sandbox: Sandbox, kind: str) -> None:
    sandbox.store.parent.mkdir()
    if kind == "text":
        sandbox.store.write_text("this is my diary\n" * 1000)
    elif kind == "folder":
        sandbox.store.mkdir()
    else:
        other = sqlite3.connect(sandbox.store)
        other.execute("create table runs (mine text)")
        other.commit()
        other.close()
    before = None if kind == "folder" else sandbox.store.read_bytes()
    for verb in (["orchestrate", "Write a poem", "--model", "demo"], ["runs"], ["resume", "r-1"]):
        refused = sandbox.run(*verb, cwd=sandbox.workspace)
        assert refused.exit_code == 3, refused.err
        assert "error[MN-02" in refused.err
        assert "hint: " in refused.err
        assert "Traceback" not in refused.err
    assert before is None or sandbox.store.read_bytes() == before


def test_secret_1_a_password_in_a_base_url_leaves_nothing_behind(sandbox: Sandbox) -> None:
    refused = orchestrate(sandbox, "Write a poem", "--base-url", f"http://me:{KEY}@127.0.0.1:1")
    is_refused(sandbox, refused, 2, "MN-0111")
    assert KEY not in refused.out + refused.err
    assert not sandbox.store.exists()


def test_the_files_of_a_home_are_never_sent_away(sandbox: Sandbox, server: DemoServer) -> None:
    flags = ["Write a poem", "--model", "demo", "--base-url", server.url]
    refused = orchestrate(sandbox, *flags, HOME=str(sandbox.workspace))
    is_refused(sandbox, refused, 2, "MN-0107")
    assert refused.summary["run"] is None


def test_a_demo_server_on_a_port_that_is_taken_says_so_and_one_that_serves_speaks_json(sandbox: Sandbox) -> None:
    serving = sandbox.start("demo", "serve", "--json")
    until(serving.text_lines, "it prints its address")
    port = json.loads(serving.text_lines()[0])["base_url"].rpartition(":")[2]
    is_refused(sandbox, sandbox.run("demo", "serve", "--json", "--port", port), 3, "MN-0211", orphans=True)
    serving.send(signal.SIGTERM)
    ended = serving.finished(20)
    assert (ended.exit_code, [line["type"] for line in ended.lines]) == (143, ["server", "summary"])
