"""BUDGET-1 as a user meets it: the run stops before the spend, and goes on with more."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from command import DemoServer, Finished, Sandbox
from messages_server import MessagesServer, Reply
from mnemosyne.demo import model, wire
from mnemosyne.demo.sample import DEMO_PROMPT, copy_sample

PLAN = """{"tasks": [{"id": "prices", "title": "Finish shop/pricing.py", "file_scope": ["shop/pricing.py"],
                      "acceptance": [{"command": "python3 -m unittest tests.test_pricing"}]}]}"""

HANDS_ON = """
from mnemosyne import AgentExecutionMixin, create_agent

class HandsOn(AgentExecutionMixin):
    async def execute_work(self, work):
        return await create_agent("executor", self.config).execute_work(work)
"""


@pytest.fixture
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    """A server whose log holds the requests of one test only."""
    server = DemoServer(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


def one_task(sandbox: Sandbox, server: DemoServer, *flags: str) -> Finished:
    """Run the demo's plan of one task."""
    (sandbox.root / "plan.json").write_text(PLAN)
    copy_sample(sandbox.workspace)
    at = ["--workspace", str(sandbox.workspace), "--model", "demo", "--base-url", server.url, "--json"]
    return sandbox.run("orchestrate", "--plan", "plan.json", *at, *flags)


def why_it_stopped(stopped: Finished) -> dict[str, Any]:
    """The data of the event that ended a run which its budget stopped."""
    assert (stopped.exit_code, stopped.summary["state"]) == (4, "budget"), stopped.err
    assert stopped.summary["resume"]
    # Depth is no sum, and so is told in other words.
    assert re.search(r"error\[MN-0501\]: (the budget of |\S+ would be handed on)", stopped.err), stopped.err
    assert "--budget-" in stopped.err
    last = [event for event in stopped.events if event["run"]][-1]
    assert last["kind"] == "budget_exceeded"
    return dict(last["data"])


def nothing_was_paid_twice(events: list[dict[str, Any]], seen: Counter[str]) -> None:
    """Each request whose answer was used was seen once at the server, and nothing else was but what was cut off."""
    started = [event for event in events if event["kind"] == "step_started" and "request_sha256" in event["data"]]
    ended = {place(event): event["data"]["state"] for event in events if event["kind"] == "step_finished"}
    finished = Counter(event["data"]["request_sha256"] for event in started if ended.get(place(event)) == "finished")
    assert finished
    assert set(finished.values()) == {1}
    others = Counter(event["data"]["request_sha256"] for event in started if ended.get(place(event)) != "finished")
    for sha256, times in seen.items():
        assert finished[sha256] <= times <= finished[sha256] + others[sha256]


def place(event: dict[str, Any]) -> tuple[object, ...]:
    return event["item"], event.get("attempt"), event["data"]["number"]


def test_budget_1_a_first_turn_that_is_worth_more_than_the_budget_is_not_sent(
    sandbox: Sandbox, own_server: DemoServer
) -> None:
    (sandbox.root / "wish.txt").write_text("Read all of this first.\n" + "a long line of the old report\n" * 20_000)
    sandbox.workspace.mkdir()
    at = ["--workspace", str(sandbox.workspace), "--base-url", own_server.url, "--json"]
    flags = ["--model", "claude-opus-5-5", "--budget-usd", "0.10"]
    stopped = sandbox.run("orchestrate", "@wish.txt", *at, *flags)
    why = why_it_stopped(stopped)
    assert (why["kind"], why["level"], why["limit"], why["spent"]) == ("usd", "run", 0.1, 0.0)
    assert own_server.requests() == []
    assert stopped.summary["usage"]["turns"] == 0
    assert stopped.summary["spent"]["calls"] == 0


def test_budget_1_a_run_that_its_budget_stops_is_finished_with_more_and_nothing_is_paid_twice(
    sandbox: Sandbox, own_server: DemoServer
) -> None:
    stopped = sandbox.demo("--base-url", own_server.url, "--budget-tokens", "35000")
    assert why_it_stopped(stopped)["kind"] == "tokens"
    spent = stopped.summary["spent"]["tokens"]
    assert 0 < spent <= 35_000
    said = [event["data"] for event in stopped.events if event["kind"] == "budget_warning"]
    assert [warning["fraction"] for warning in said] == [0.8, 0.95][: len(said)]
    asked = own_server.seen()

    refused = sandbox.run("resume", "--json", "--budget-tokens", str(spent))
    assert (refused.exit_code, refused.summary["error"]["code"]) == (2, "MN-0140"), refused.err
    assert f"{spent} tokens are spent" in refused.err
    assert own_server.seen() == asked, "a refused resume asks nobody"

    done = sandbox.run("resume", "--json", "--budget-tokens", "1000000")
    assert (done.exit_code, done.summary["state"]) == (0, "done"), done.err
    assert done.summary["budget"]["tokens"] == 1_000_000
    assert sandbox.sample_tests().returncode == 0
    nothing_was_paid_twice(sandbox.run_events(done.summary["run"]), own_server.seen())


def test_budget_1_dollars_end_a_run_of_a_priced_model_before_they_are_spent(sandbox: Sandbox) -> None:
    """The demo model answers under the names of models that cost something, so its usage has a price."""

    def answer(body: dict[str, Any]) -> Reply:
        asked = {**body, "model": wire.MODEL}
        if "max_tokens" not in body:
            return Reply(body=json.dumps({"input_tokens": wire.input_tokens(asked)}).encode())
        message = wire.message(asked, model.answer(asked), wire.digest(body)[:24])
        return Reply(events=list(wire.events(message)))

    copy_sample(sandbox.workspace)
    with MessagesServer(answer=answer) as server:
        at = ["--workspace", str(sandbox.workspace), "--base-url", server.url, "--json"]
        stopped = sandbox.run("orchestrate", DEMO_PROMPT, *at, "--budget-usd", "0.12")
        why = why_it_stopped(stopped)
        assert (why["kind"], why["limit"]) == ("usd", 0.12)
        spent = stopped.summary["spent"]["usd"]
        assert 0.05 < spent <= 0.12
        assert stopped.summary["usage"]["cost_usd"] == pytest.approx(spent)
        done = sandbox.run("resume", "--json", "--budget-usd", "50")
        assert (done.exit_code, done.summary["state"]) == (0, "done"), done.err
        assert done.summary["spent"]["usd"] > 0.12
    turns = [seen for seen in server.seen if "max_tokens" in seen.body]
    assert 1024 <= min(seen.body["max_tokens"] for seen in turns) < 20_000, "the last answers were to be shorter"
    nothing_was_paid_twice(sandbox.run_events(done.summary["run"]), Counter(seen.body_sha256 for seen in turns))


@pytest.mark.parametrize(
    ("few", "more", "kind", "level"),
    [
        (["--budget-calls", "2"], ["--budget-calls", "100"], "calls", "run"),
        (["--budget-seconds", "0.3"], ["--budget-seconds", "600"], "seconds", "run"),
        (["--budget-per-task", "calls=2"], ["--budget-per-task", "calls=100"], "calls", "task"),
        (["--budget-per-task", "tokens=6000"], ["--budget-per-task", "tokens=900000"], "tokens", "task"),
        (["--budget-per-agent", "calls=2"], ["--budget-per-agent", "calls=100"], "calls", "agent"),
        (["--budget-per-agent", "seconds=0.2"], ["--budget-per-agent", "seconds=600"], "seconds", "agent"),
    ],
    ids=["calls", "seconds", "calls per task", "tokens per task", "calls per agent", "seconds per agent"],
)
def test_budget_1_every_kind_of_limit_stops_a_run_that_can_be_resumed_with_more(
    sandbox: Sandbox, own_server: DemoServer, few: list[str], more: list[str], kind: str, level: str
) -> None:
    stopped = one_task(sandbox, own_server, *few)
    why = why_it_stopped(stopped)
    assert (why["kind"], why["level"]) == (kind, level)
    if kind == "calls":
        assert own_server.seen().total() == 2
    done = sandbox.run("resume", "--json", *more)
    assert (done.exit_code, done.summary["state"]) == (0, "done"), done.err
    nothing_was_paid_twice(sandbox.run_events(done.summary["run"]), own_server.seen())


def test_budget_1_an_agent_that_may_not_hand_its_work_on_stops_the_run(
    sandbox: Sandbox, own_server: DemoServer
) -> None:
    (sandbox.root / "hands.py").write_text(HANDS_ON)
    stopped = one_task(sandbox, own_server, "--agent", "executor=hands:HandsOn", "--budget-depth", "1")
    assert why_it_stopped(stopped)["kind"] == "depth"
    assert own_server.seen().total() == 0
    done = sandbox.run("resume", "--json", "--budget-depth", "2")
    assert (done.exit_code, done.summary["state"]) == (0, "done"), done.err


def test_budget_1_a_sub_agent_spends_the_budget_of_its_run(sandbox: Sandbox, own_server: DemoServer) -> None:
    (sandbox.root / "hands.py").write_text(HANDS_ON)
    flags = ["--agent", "executor=hands:HandsOn", "--max-concurrent", "1", "--budget-per-agent", "calls=2"]
    stopped = one_task(sandbox, own_server, *flags)
    why = why_it_stopped(stopped)
    assert (why["kind"], why["level"], why["name"]) == ("calls", "agent", "executor-1")
    assert own_server.seen().total() == 2


def test_budget_1_a_model_without_a_price_cannot_be_limited_in_dollars(
    sandbox: Sandbox, own_server: DemoServer
) -> None:
    sandbox.workspace.mkdir()
    at = ["--workspace", str(sandbox.workspace), "--base-url", own_server.url, "--json", "--model", "mystery-1"]
    for flags in (["--budget-usd", "1"], ["--budget-per-task", "usd=1"], ["--budget-per-agent", "usd=0.5,calls=3"]):
        refused = sandbox.run("orchestrate", "Write a poem", *at, *flags)
        assert (refused.exit_code, refused.summary["error"]["code"]) == (2, "MN-0119"), refused.err
    assert own_server.requests() == []
    assert not sandbox.store.exists()


def test_the_summary_says_what_is_spent_of_each_limit(sandbox: Sandbox, server: DemoServer) -> None:
    done = one_task(sandbox, server, "--budget-tokens", "900000", "--budget-calls", "50", "--budget-seconds", "900.5")
    assert done.exit_code == 0, done.err
    spent, budget = done.summary["spent"], done.summary["budget"]
    assert (budget["tokens"], budget["calls"], budget["seconds"]) == (900_000, 50, 900.5)
    assert spent["calls"] == done.summary["usage"]["turns"] > 0
    assert spent["tokens"] == sum(done.summary["usage"][f"{kind}_tokens"] for kind in ("input", "output"))
    assert 0 < spent["seconds"] < 60
    shown = sandbox.run("show", done.summary["run"]).out
    assert f"{spent['calls']} of 50 calls" in shown
    assert "of 900.5 seconds" in shown
