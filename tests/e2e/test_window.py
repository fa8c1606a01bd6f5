"""The window over HTTP: what other processes do is seen and told through it, and nobody else comes in."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import OpenWindow
from command import DemoServer, Running, Sandbox, until
from patient import go_on, run_of

DOCUMENT = json.loads((Path(__file__).parents[2] / "rust/server/src/openapi.json").read_text(encoding="utf-8"))
OPERATIONS = [(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods]
TASK = {"id": "t1", "title": "One", "acceptance": [{"command": "test -f one"}]}
ECHO = """
from mnemosyne import AgentExecutionMixin
class Echo(AgentExecutionMixin):
    async def execute_work(self, work_dict):
        return {"success": True, "data": {"said": work_dict["description"]}}
"""


@pytest.fixture
def window(sandbox: Sandbox) -> OpenWindow:
    """A window over the sandbox's store, in a process of its own."""
    return OpenWindow.of(sandbox.start("serve", "--port", "0", "--model", "demo", "--json"))


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory, server: DemoServer) -> Iterator[tuple[Sandbox, OpenWindow]]:
    """A store in which a run is done, and a window over it."""
    sandbox = Sandbox(tmp_path_factory.mktemp("after"))
    assert sandbox.demo("--quiet", "--base-url", server.url).exit_code == 0
    yield sandbox, OpenWindow.of(sandbox.start("serve", "--port", "0", "--model", "demo", "--json"))
    sandbox.close()


def agents(window: OpenWindow) -> dict[str, Any]:
    boots = window.get("/state")["live"]["boots"].values()
    return {agent["agent_id"]: agent for boot in boots for agent in boot["agents"]}


def test_truth_2_a_run_of_another_process_is_running_only_while_that_process_lives(
    sandbox: Sandbox, held: Running, window: OpenWindow
) -> None:
    run = run_of(held)
    until(lambda: [one for one in agents(window).values() if one["state"] == "busy"], "somebody is busy")
    state = window.get("/state")
    assert (state["live"]["runs"], state["live"]["queue"]["running"] > 0) == ({run: "running"}, True)
    assert {task["state"] for task in state["picture"]["runs"][run]["tasks"]} & {"running"}
    busy = [one for one in agents(window).values() if one["state"] == "busy"]
    assert all(one["item"].startswith(run) for one in busy)
    assert window.get("/ready")["ready"] is True
    shown = window.get(f"/runs/{run}")
    assert (shown["state"], shown["pid"], len(shown["tasks"])) == ("running", held.process.pid, 4)
    assert [row["run"] for row in window.get("/runs")["runs"]] == [run]
    held.send(signal.SIGKILL)
    until(lambda: window.get("/state")["live"]["runs"] == {run: "interrupted"}, "it is interrupted", 10)
    assert {agent["state"] for agent in agents(window).values()} == {"stopped"}
    assert window.get(f"/runs/{run}")["state"] == "interrupted"
    unready = window.ask("GET", "/ready")
    assert (unready.status, unready.json["ready"]) == (503, False)
    assert "no process that lives" in unready.json["roles"]["executor"]["reasons"][0]


def test_a_run_of_another_process_is_told_what_to_do(sandbox: Sandbox, held: Running, window: OpenWindow) -> None:
    run = run_of(held)
    stream = window.events()
    assert next(stream).name == "snapshot"
    restarted = window.post(f"/runs/{run}/agents/reviewer-1/restart", {"reason": "from a test"})
    assert (restarted.status, restarted.json["asked"]) == (202, "restart reviewer-1")
    event = next(message.data for message in stream if message.data.get("kind") == "agent_restarted")
    assert (event["agent"], event["data"]["reason"]) == ("reviewer-1", "from a test")
    found = window.get(f"/runs/{run}/agents")["agents"]
    assert "reviewer-1" in [agent["agent_id"] for agent in found]
    assert window.post(f"/runs/{run}/agents/reviewer-1/release").status == 202
    assert window.post(f"/runs/{run}/pause").status == 202
    next(message for message in stream if message.data.get("kind") == "run_paused")
    until(lambda: window.get(f"/runs/{run}")["state"] == "paused", "it is paused")
    assert window.post(f"/runs/{run}/resume").json["asked"] == "continue"
    next(message for message in stream if message.data.get("kind") == "run_resumed")
    assert window.post(f"/runs/{run}/cancel").status == 202
    go_on(sandbox)
    assert held.finished().summary["state"] == "cancelled"
    until(lambda: window.get("/state")["live"]["runs"] == {run: "cancelled"}, "it is cancelled")


def test_what_cannot_be_done_is_refused_with_the_words_of_the_command_line(after: tuple[Sandbox, OpenWindow]) -> None:
    _, window = after
    run = window.get("/runs")["runs"][0]["run"]
    for method, path, status, code in (
        ("GET", "/runs/r-00000000", 404, "MN-0110"),
        ("POST", "/runs/r-00000000/cancel", 404, "MN-0110"),
        ("POST", f"/runs/{run}/pause", 409, "MN-0220"),
        ("POST", f"/runs/{run}/agents/reviewer-1/restart", 409, "MN-0220"),
        ("POST", f"/runs/{run}/resume", 409, "MN-0116"),
        ("GET", "/items/nothing", 404, "MN-0717"),
        ("GET", "/nowhere", 404, "MN-0714"),
        ("DELETE", "/runs", 405, "MN-0714"),
        ("GET", "/events?since=x", 400, "MN-0715"),
        ("GET", "/events?until=1", 400, "MN-0715"),
        ("GET", "/runs/%ff", 400, "MN-0715"),
    ):
        answer = window.ask(method, path)
        assert (answer.status, answer.code) == (status, code), path
        assert answer.json["error"]["hint"], path
    assert "GET" in window.ask("DELETE", "/runs").headers["Allow"]
    for body, kind, status, code in (
        (b'{"reason": 1}', "application/json", 400, "MN-0715"),
        (b"{}", "text/plain", 415, "MN-0715"),
        (b" " * 10_000_001, "application/json", 413, "MN-0102"),
    ):
        headers = {"Authorization": f"Bearer {window.token}", "Content-Type": kind}
        answer = window.ask("POST", f"/runs/{run}/cancel", body, headers=headers)
        assert (answer.status, answer.code) == (status, code)


def test_work_that_comes_in_is_done_here(sandbox: Sandbox, server: DemoServer) -> None:
    (sandbox.root / "echo.py").write_text(ECHO)
    serving = sandbox.start(
        "serve", "--port", "0", "--model", "demo", "--base-url", server.url, "--agent", "executor=echo:Echo", "--json"
    )
    window = OpenWindow.of(serving)
    item = {"id": "i-1", "description": "hello", "phase": "plan_to_artifacts", "role": "executor"}
    assert (submitted := window.post("/items", {"item": item})).status == 201, submitted
    until(lambda: window.get("/items/i-1")["state"] == "done", "the item is done")
    assert window.get("/items/i-1")["result"]["data"] == {"said": "hello"}
    again = window.post("/items", {"item": item})
    assert (again.status, again.code) == (422, "MN-0106")
    (sandbox.root / "empty").mkdir()
    run = window.post("/runs", {"plan": {"tasks": [TASK]}, "workspace": str(sandbox.root / "empty")})
    assert run.status == 201, run
    until(lambda: window.get(f"/runs/{run.json['run']}")["state"] == "failed", "an echo makes no file")
    assert window.get("/state")["live"]["runs"] == {run.json["run"]: "failed"}
    serving.send(signal.SIGTERM)
    assert serving.finished(30).exit_code == 0, "nothing was cut off"


def test_an_interrupted_run_goes_on_in_a_window_that_works_as_it_was_begun(
    sandbox: Sandbox, held: Running, server: DemoServer
) -> None:
    run = run_of(held)
    held.send(signal.SIGKILL)
    held.finished()
    other = OpenWindow.of(sandbox.start("serve", "--port", "0", "--model", "demo", "--json"))
    refused = other.post(f"/runs/{run}/resume")
    assert (refused.status, refused.code) == (422, "MN-0719")
    go_on(sandbox)
    flags = ("--model", "demo", "--base-url", server.url, "--agent", "executor=patient:Patient")
    window = OpenWindow.of(sandbox.start("serve", "--port", "0", *flags, "--json"))
    assert window.post(f"/runs/{run}/resume").status == 202
    until(lambda: window.get(f"/runs/{run}")["state"] == "done", "it is done")


def test_orchestrate_opens_a_window_of_its_own(sandbox: Sandbox) -> None:
    running = sandbox.start_demo("--serve", "--window-port", "0")
    until(lambda: "window http" in running.errors, f"it says where: {running.errors}")
    said = re.search(r"window (http://\S+)  token (.+)", running.errors)
    assert said is not None
    window = OpenWindow(said[1], Path(said[2]))
    assert window.get("/health")["status"] == "ok"
    until(lambda: window.get("/state")["live"]["runs"], "the run is seen")
    assert running.finished().exit_code == 0


def test_a_port_that_is_taken_and_a_token_that_others_may_read(sandbox: Sandbox, window: OpenWindow) -> None:
    taken = sandbox.run("serve", "--port", window.host.rsplit(":")[-1])
    assert (taken.exit_code, "error[MN-0710]" in taken.err) == (3, True)
    window.token_file.chmod(0o644)
    refused = sandbox.run("serve", "--port", "0", "--json")
    assert (refused.exit_code, "error[MN-0713]" in refused.err) == (3, True)
    assert window.token[:8] not in refused.err + refused.out


def test_metrics_are_the_figures_of_stats_and_no_label_is_an_id(after: tuple[Sandbox, OpenWindow]) -> None:
    sandbox, window = after
    stats = next(line for line in sandbox.run("stats", "--json").lines if line["type"] == "stats")
    until(lambda: f"mnemosyne_events_total {stats['events']}\n" in window.ask("GET", "/metrics").text, "all are read")
    answer = window.ask("GET", "/metrics")
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    claims: dict[str, int] = {}
    for outcome, count in re.findall(r'mnemosyne_claims_total\{.*outcome="(\w+)"\} (\d+)', answer.text):
        claims[outcome] = claims.get(outcome, 0) + int(count)
    assert claims == stats["claims"]
    for name in ("tasks", "reviews", "steps"):
        found = re.findall(rf'mnemosyne_{name}_total\{{outcome="(\w+)"\}} (\d+)', answer.text)
        assert {outcome: int(count) for outcome, count in found} == stats[name]
    tokens = dict(re.findall(r'mnemosyne_tokens_total\{kind="(\w+)"\} (\d+)', answer.text))
    assert int(tokens["input"]) == stats["usage"]["input_tokens"] > 0
    labels = set(re.findall(r'(\w+)="', answer.text))
    assert labels == {"role", "phase", "outcome", "state", "kind"}
    assert not re.search(r"\br-[0-9a-f]{8}|executor-\d", answer.text)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer 00"},
        {"Authorization": "Basic {token}"},
        {"Cookie": "mnemosyne-1={token}"},
        {"Cookie": "mnemosyne-{port}=00"},
    ],
)
def test_secret_1_nothing_but_health_answers_without_the_token(window: OpenWindow, headers: dict[str, str]) -> None:
    port = window.host.rsplit(":")[-1]
    given = {name: value.replace("{token}", window.token).replace("{port}", port) for name, value in headers.items()}
    assert len(OPERATIONS) > 20
    for method, path in OPERATIONS:
        answer = window.ask(method, path, headers=given)
        assert answer.status == (200 if path == "/health" else 401), (method, path)
    unknown = window.ask("GET", "/nowhere", headers=given)
    assert (unknown.status, unknown.code) == (401, "MN-0711")
    page = window.ask("GET", "/", headers={**given, "Accept": "text/html"})
    assert (page.status, "Paste the line" in page.text, "runs" in page.text) == (401, True, False)


def test_secret_1_a_page_of_another_origin_can_do_nothing(sandbox: Sandbox, window: OpenWindow) -> None:
    """Not even in a browser that has the cookie: what it sends then is refused before anything is looked at."""
    cookie = {"Cookie": f"mnemosyne-{window.host.rsplit(':')[-1]}={window.token}"}
    own = window.ask("GET", "/state", headers={**cookie, "Origin": f"http://{window.host}"})
    assert own.status == 200
    assert "Access-Control-Allow-Origin" not in own.headers
    assert "frame-ancestors 'none'" in own.headers["Content-Security-Policy"]
    for foreign in (
        {"Origin": "https://example.org"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": f"https://{window.host}"},
        {"Host": "rebound.example.org"},
        {"Host": "rebound.example.org", "Origin": "http://rebound.example.org"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        for method, path in OPERATIONS:
            answer = window.ask(method, path, headers={**cookie, **foreign})
            assert (answer.status, answer.code) == (403, "MN-0712"), (method, path, foreign)
            assert "Access-Control-Allow-Origin" not in answer.headers
    preflight = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    assert window.ask("OPTIONS", "/runs", headers=preflight).status == 403


def test_the_sign_in_form_takes_the_line_of_the_token_file_and_nothing_else(window: OpenWindow) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for pasted in (window.token, f"Authorization%3A+Bearer+{window.token}", f"{window.token}%0A"):
        answer = window.ask("POST", "/login", f"token={pasted}".encode(), headers=form)
        assert (answer.status, answer.headers["location"]) == (303, "/"), pasted
        cookie = answer.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
        assert window.ask("GET", "/state", headers={"Cookie": cookie.split(";")[0]}).status == 200
    for pasted in ("", "00", window.token[1:]):
        answer = window.ask("POST", "/login", f"token={pasted}".encode(), headers=form)
        assert (answer.status, "set-cookie" in answer.headers) == (401, False)
