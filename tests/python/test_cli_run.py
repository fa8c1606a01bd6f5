"""What the command line does around a run: streams, exit codes, signals, and which run ``resume`` means.

The orchestra is replaced by one that plays a given list of events: these tests are about the command line alone, the
real thing is in ``tests/e2e``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import types
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mnemosyne.cli import main
from mnemosyne.cli.progress import Progress
from mnemosyne.cli.style import Style
from mnemosyne.cli.summary import Summary, summary_lines
from mnemosyne.errors import EnvironmentProblem, MissingCredential
from mnemosyne.models import Budget, Event, Limits

RUN = "r-7f3a"


def event(sequence: int, kind: str, **fields: Any) -> Event:
    return Event(sequence=sequence, at=f"2026-11-22T10:11:{sequence:02d}.500Z", kind=kind, **{"run": RUN, **fields})


def summary(state: str = "done", exit_code: int = 0, **changes: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("command", "exit_code", "before_exit_code", "path", "change", "sha256", "output"))
    seen = {**nothing, "seconds": 0.2}
    task = {
        "id": "t2",
        "title": "Discounts",
        "state": "accepted",
        "attempts": 2,
        "depends_on": ["t1"],
        "files": ["shop/discounts.py"],
        "evidence": [
            {**seen, "kind": "acceptance", "command": "python3 -m unittest", "exit_code": 0, "before_exit_code": 1},
            {**seen, "kind": "joined", "command": "python3 -m other", "exit_code": 0},
            {**seen, "kind": "test", "path": "tests/test_it.py", "change": "extended"},
            {**seen, "kind": "accepted", "path": "shop/discounts.py", "change": "changed", "sha256": "ab" * 32},
        ],
        "review": {
            "passed": True,
            "confidence": 0.9,
            "feedback": "",
            "requirements": [{"id": "R1", "met": True, "reason": "the test says so"}],
        },
    }
    usage = {
        "turns": 3,
        "input_tokens": 12_000,
        "output_tokens": 345,
        "cache_read_tokens": 10,
        "cache_write_tokens": 0,
        "unknown_turns": 1,
        "cost_usd": 0.0,
    }
    return {
        "run": RUN,
        "state": state,
        "exit_code": exit_code,
        "model": "demo",
        "demo": True,
        "workspace": "/somewhere/mnemosyne-demo",
        "phases": [{"name": "prompt_to_spec", "state": "done", "seconds": 0.25, "artifact": "spec.json"}],
        "tasks": [task],
        "usage": usage,
        "parked": [],
        "budget": Budget().model_dump(mode="json"),
        "spent": {"usd": 0.0, "tokens": 12_355, "calls": 4, "seconds": 4.0},
        "restarts": 0,
        "resumes": 0,
        "seconds": 4.1,
        "error": None,
        "resume": f"mnemosyne resume {RUN}" if state in ("interrupted", "budget") else None,
        **changes,
    }


@dataclass
class Overview:
    id: str
    state: str = "interrupted"
    alive: bool = False
    pid: int | None = None
    prompt: str | None = "do it"
    workspace: str = "/elsewhere"
    phase: str = "plan_to_artifacts"
    created_at: str = "2026-11-22T10:11:12.345Z"
    options: dict[str, Any] = field(default_factory=dict)
    budget: None = None


@dataclass
class Script:
    """What the orchestra of a test plays, and what it was asked."""

    events: list[Event] = field(default_factory=list)
    past: list[Event] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=summary)
    runs: list[Overview] = field(default_factory=list)
    enter: Exception | None = None
    during: Callable[[], None] | None = None
    made: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[Any, ...]] = field(default_factory=list)


@dataclass
class Result:
    form: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.form["run"])

    @property
    def state(self) -> str:
        return str(self.form["state"])

    def summary(self) -> dict[str, Any]:
        return self.form


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Install an orchestra that plays the returned script, in a folder with a store."""
    script = Script(
        events=[event(1, "run_submitted"), event(2, "phase_started", phase="prompt_to_spec"), event(3, "run_completed")]
    )

    class Run:
        id = RUN

        async def events(self, *, since: int = 0) -> AsyncIterator[Event]:
            for number, played in enumerate(played for played in script.events if played.sequence > since):
                if number == 1 and script.during is not None:
                    script.during()
                    while not any(asked[0] == "drain" for asked in script.asked):
                        await asyncio_turn()
                yield played

        async def result(self) -> Result:
            return Result(script.summary)

    class Orchestra:
        def __init__(self, **made: Any) -> None:
            script.made = made

        async def __aenter__(self) -> Orchestra:
            if script.enter is not None:
                raise script.enter
            return self

        async def __aexit__(self, *_: object) -> None:
            script.asked.append(("left",))

        async def submit(self, goal: Any, **given: Any) -> Run:
            script.asked.append(("submit", goal, given))
            return Run()

        async def resume(self, run: str, **given: Any) -> Run:
            script.asked.append(("resume", run, given))
            return Run()

        async def drain(self, timeout: float) -> bool:
            script.asked.append(("drain", timeout))
            return True

    async def list_runs(_store: Path) -> list[Overview]:
        return script.runs

    async def show_run(_store: Path, _run: str) -> Result:
        return Result(script.summary)

    async def cancel_run(_store: Path, run: str, reason: str) -> None:
        script.asked.append(("cancel", run, reason))

    async def read_events(_store: Path, _run: str, *, since: int, follow: bool) -> AsyncIterator[Event]:
        for past in script.past:
            if past.sequence > since:
                yield past

    orchestra = types.ModuleType("mnemosyne.orchestra")
    for item in (Orchestra, list_runs, show_run, cancel_run, read_events):
        setattr(orchestra, item.__name__, item)
    bridge = types.ModuleType("mnemosyne.bridge")
    bridge.AgentSpec = lambda source: ("spec", source)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mnemosyne.orchestra", orchestra)
    monkeypatch.setitem(sys.modules, "mnemosyne.bridge", bridge)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("MNEMOSYNE_STORE", str(tmp_path / "store.db"))
    (tmp_path / "store.db").touch()
    return script


async def asyncio_turn() -> None:
    import asyncio

    await asyncio.sleep(0)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_is_events_as_they_come_and_a_summary_as_the_last_line(
    script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    script.events.insert(1, event(2, "agent_started", run=None, agent="executor-1", data={"agent_id": "executor-1"}))
    assert main(["orchestrate", "do it", "--json"]) == 0
    said = lines(capsys)
    assert [line["type"] for line in said] == ["event"] * 4 + ["summary"]
    assert all(line["schema"] == 1 for line in said)
    assert said[1]["run"] is None
    assert "phase" not in said[1]
    assert said[-1] == {"type": "summary", "schema": 1, **script.summary}


def test_the_prompt_the_flags_and_the_workspace_reach_the_orchestra(script: Script, tmp_path: Path) -> None:
    (tmp_path / "wish.txt").write_text("make it so", "utf-8")
    arguments = "orchestrate @wish.txt --model demo --max-concurrent 2 --budget-tokens 900 --agent executor=mine:Own"
    assert main([*arguments.split(), "--base-url", "http://127.0.0.1:9"]) == 0
    assert script.made["agents"] == {"executor": ("spec", "mine:Own")}
    assert (script.made["model"], script.made["max_concurrent"]) == ("demo", 2)
    assert script.made["base_url"] == "http://127.0.0.1:9"
    assert script.made["store"] == tmp_path / "store.db"
    _, goal, given = script.asked[0]
    assert goal == "make it so"
    assert given["workspace"] == tmp_path
    assert given["budget"].tokens == 900
    assert str(tmp_path) in sys.path


def test_all_limits_reach_the_orchestra(script: Script) -> None:
    flags = "--budget-usd 2 --budget-calls 9 --budget-seconds 60 --budget-depth 1 --budget-per-agent tokens=70"
    assert (
        main(["orchestrate", "do it", *flags.split(), "--budget-per-task", "usd=0.5,calls=3,seconds=1.5,depth=2"]) == 0
    )
    expected = Budget(
        usd=2,
        calls=9,
        seconds=60,
        depth=1,
        per_task=Limits(usd=0.5, calls=3, seconds=1.5, depth=2),
        per_agent=Limits(tokens=70),
    )
    assert script.asked[0][2]["budget"] == expected


def test_people_see_what_is_spent_of_the_budget_and_are_warned(
    script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = Budget(usd=1, tokens=20_000, depth=2, per_task=Limits(calls=3))
    script.summary = summary("done", 0, budget=budget.model_dump(mode="json"))
    assert main(["orchestrate", "do it", "--model", "demo"]) == 0
    shown = "0.00 of 1.00 USD, 12,355 of 20,000 tokens, 2 deep, 3 calls per task"
    assert f"budget    {shown}" in capsys.readouterr().out
    data: dict[str, Any] = {"kind": "tokens", "fraction": 0.8, "spent": 16_000.0, "limit": 20_000.0, "level": "task"}
    event = Event(
        sequence=1, at="2026-11-22T10:11:12.345Z", run=RUN, kind="budget_warning", data={**data, "name": "t1"}
    )
    assert any("80% of the tokens of t1 are spent" in line for line in Progress(Style(sys.stdout)).lines(event))


def test_people_see_lines_of_progress_and_a_summary(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["orchestrate", "do it", "--model", "demo"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"{RUN} with the demo model" in out
    assert "    1.0s       0  prompt_to_spec" in out
    assert "red -> green" in out
    assert "2 attempts" in out
    assert "0.00 (demo model)" in out
    assert "\x1b" not in out


def test_the_summary_tells_why_an_attempt_was_rejected(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    feedback = {"feedback": "AssertionError: 100.0 != 90.0"}
    script.events.insert(2, event(2, "review_rejected", phase="plan_to_artifacts", task="t2", attempt=1, data=feedback))
    assert main(["orchestrate", "do it", "--quiet"]) == 0
    assert "attempt 1 rejected: AssertionError: 100.0 != 90.0" in capsys.readouterr().out


def test_quiet_leaves_the_summary_only(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["orchestrate", "do it", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"done  {RUN}")


@pytest.mark.parametrize(("state", "exit_code"), [("failed", 1), ("cancelled", 1), ("interrupted", 3), ("budget", 4)])
def test_the_exit_code_is_the_run_s_and_its_error_is_on_stderr(
    script: Script, capsys: pytest.CaptureFixture[str], state: str, exit_code: int
) -> None:
    error = {"code": "MN-0701", "message": "it is not done", "reason": "because", "hint": "mnemosyne show"}
    script.summary = summary(state, exit_code, error=error)
    assert main(["orchestrate", "do it"]) == exit_code
    out, err = capsys.readouterr()
    assert err == "error[MN-0701]: it is not done\n  why: because\n  hint: mnemosyne show\n"
    assert (f"mnemosyne resume {RUN}" in out) == (state in ("interrupted", "budget"))


def test_the_resume_command_has_the_flags_that_this_place_needs(
    script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    script.summary = summary("budget", 4)
    Path("key").write_text("sk-very-secret")
    Path("key").chmod(0o600)
    assert main(["orchestrate", "do it", "--store", "my store.db", "--api-key-file", "key", "--json"]) == 4
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["resume"] == (
        f"mnemosyne resume {RUN} --store 'my store.db' --api-key-file key"
    )
    assert script.made["api_key"].get_secret_value() == "sk-very-secret"
    assert "secret" not in out + err


def test_a_hint_to_resume_is_the_whole_command(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    error = {"code": "MN-0205", "message": "no answer", "reason": "", "hint": f"mnemosyne resume {RUN}"}
    script.summary = summary("interrupted", 3, error=error)
    assert main(["orchestrate", "do it", "--store", "other.db"]) == 3
    assert f"hint: mnemosyne resume {RUN} --store other.db\n" in capsys.readouterr().err


def test_no_credential_is_exit_3_with_the_ways_out(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.enter = MissingCredential("no API key was found", code="MN-0201", hint="mnemosyne demo")
    assert main(["orchestrate", "do it", "--json"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["code"] == "MN-0201"
    assert json.loads(out)["run"] is None
    assert "mnemosyne demo" in err


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_drains_and_the_run_can_be_resumed(
    script: Script, capsys: pytest.CaptureFixture[str], number: signal.Signals, exit_code: int
) -> None:
    error = {"code": "MN-0702", "message": "the run was interrupted", "reason": "", "hint": f"mnemosyne resume {RUN}"}
    script.summary = summary("interrupted", 130, error=error)
    script.during = lambda: os.kill(os.getpid(), number)
    assert main(["orchestrate", "do it", "--json"]) == exit_code
    out, err = capsys.readouterr()
    last = json.loads(out.splitlines()[-1])
    assert (last["state"], last["exit_code"], last["resume"]) == ("interrupted", exit_code, f"mnemosyne resume {RUN}")
    assert "stopping" in err
    assert "error[" not in err
    assert [asked[0] for asked in script.asked] == ["submit", "drain", "left"]


def test_a_run_that_ends_while_it_drains_is_done(script: Script) -> None:
    script.during = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert main(["orchestrate", "do it", "--json"]) == 0


def test_a_signal_before_there_is_a_run_ends_with_a_summary_without_one(
    script: Script, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mnemosyne.cli.orchestrate.drive", interrupt)
    assert main(["orchestrate", "do it", "--json"]) == 130
    last = lines(capsys)[-1]
    assert (last["run"], last["state"], last["exit_code"]) == (None, "interrupted", 130)


def test_an_error_after_the_run_began_names_the_run(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise EnvironmentProblem("the disk is full")

    script.during = fail
    assert main(["orchestrate", "do it", "--json"]) == 3
    last = lines(capsys)[-1]
    assert (last["run"], last["state"], last["resume"]) == (RUN, "interrupted", f"mnemosyne resume {RUN}")


def test_resume_begins_at_run_resumed_with_the_options_that_the_run_remembers(
    script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    remembered = {"model": "demo", "base_url": "http://127.0.0.1:9", "max_concurrent": 2, "demo": True}
    script.runs = [Overview(RUN, options={**remembered, "agents": {"executor": "mine:Own"}})]
    script.past = [event(1, "run_submitted"), event(2, "run_resumed")]
    script.events = [
        *script.past,
        event(3, "agent_started", run=None),
        event(4, "run_resumed"),
        event(5, "run_completed"),
    ]
    assert main(["resume", "--json"]) == 0
    said = lines(capsys)
    assert [line.get("sequence") for line in said] == [4, 5, None]
    assert (script.made["model"], script.made["max_concurrent"]) == ("demo", 2)
    assert script.made["base_url"] == "http://127.0.0.1:9"
    assert script.made["agents"] == {"executor": ("spec", "mine:Own")}
    assert script.asked[0] == ("resume", RUN, {"budget": None})


def test_resume_without_a_name_takes_the_run_of_this_folder(script: Script, tmp_path: Path) -> None:
    script.runs = [
        Overview("r-1"),
        Overview("r-2", workspace=str(tmp_path)),
        Overview("r-3", workspace=str(tmp_path), state="done"),
    ]
    assert main(["resume"]) == 0
    assert script.asked[0][:2] == ("resume", "r-2")


def test_resume_without_a_name_lists_several_and_exits_2(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.runs = [Overview("r-1"), Overview("r-2"), Overview("r-3", state="failed")]
    assert main(["resume"]) == 2
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["r-1", "r-2"]
    assert "error[MN-0118]" in err
    assert script.asked == []


def test_resume_of_a_living_run_is_refused_naming_the_pid(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.runs = [Overview(RUN, state="running", alive=True, pid=4711)]
    assert main(["resume", RUN]) == 2
    err = capsys.readouterr().err
    assert "error[MN-0112]" in err
    assert "4711" in err
    assert script.made == {}


@pytest.mark.parametrize("state", ["done", "failed", "cancelled"])
def test_resume_of_a_run_that_has_ended_is_refused(
    script: Script, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    script.runs = [Overview(RUN, state=state)]
    assert main(["resume", RUN]) == 2
    assert "error[MN-0116]" in capsys.readouterr().err


def test_show_tells_what_the_end_of_a_run_leaves_out(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.runs = [Overview(RUN, state="done")]
    assert main(["show", RUN]) == 0
    out = capsys.readouterr().out
    assert "shop/discounts.py  sha256 abababababab\n" in out
    assert "red -> green    0.20 s  python3 -m unittest\n" in out
    assert "test extended   tests/test_it.py\n" in out
    assert "R1  met     the test says so\n" in out
    assert "other" not in out, "the joined gate repeats what is known"


def test_show_of_a_failed_run_is_exit_0_and_tells_the_error(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.runs = [Overview(RUN, state="failed")]
    error = {"code": "MN-0701", "message": "it is not done", "reason": "", "hint": ""}
    script.summary = summary("failed", 1, error=error)
    assert main(["show", RUN]) == 0
    out, err = capsys.readouterr()
    assert "error[MN-0701]: it is not done" in out
    assert err == ""
    assert main(["show", RUN, "--json"]) == 0
    assert [line["type"] for line in lines(capsys)] == ["summary"]


def test_runs_are_one_line_each(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.runs = [Overview("r-1"), Overview("r-2", state="running", alive=True, pid=4711)]
    assert main(["runs"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["r-1", "r-2"]
    assert main(["runs", "--json"]) == 0
    said = lines(capsys)
    assert [(line["type"], line["run"], line["state"], line["pid"]) for line in said] == [
        ("run", "r-1", "interrupted", None),
        ("run", "r-2", "running", 4711),
    ]


def test_events_shows_each_event_after_since(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.runs = [Overview(RUN)]
    script.past = [event(1, "run_submitted"), event(2, "step_started", task="t1", data={"number": 7})]
    assert main(["events", RUN, "--since", "1"]) == 0
    out = capsys.readouterr().out
    assert "step_started" in out
    assert "t1" in out
    assert "number=7" in out
    assert "run_submitted" not in out
    assert main(["events", RUN, "--json"]) == 0
    assert [line["type"] for line in lines(capsys)] == ["event", "event", "summary"]


def test_cancel_asks_and_says_what_became_of_the_run(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.runs = [Overview(RUN)]
    script.summary = summary("cancelled", 1)
    assert main(["cancel", RUN]) == 0
    assert f"{RUN} is cancelled" in capsys.readouterr().out
    assert script.asked == [("cancel", RUN, "requested")]


def test_the_demo_works_in_the_next_free_folder_with_the_demo_model(script: Script, tmp_path: Path) -> None:
    (tmp_path / "mnemosyne-demo").mkdir()
    (tmp_path / "mnemosyne-demo" / "mine.txt").write_text("mine")
    assert main(["demo"]) == 0
    assert script.made["model"] == "demo"
    workspace = script.asked[0][2]["workspace"]
    assert workspace == tmp_path / "mnemosyne-demo-2"
    assert (workspace / "shop").is_dir()


def test_a_rejection_shows_the_assertion_that_failed_on_a_line_of_its_own() -> None:
    output = "Traceback (most recent call last):\n  File x\nAssertionError: 100.0 != 90.0\n\nFAILED (failures=1)\n"
    progress = Progress(Style(None))
    progress.lines(event(1, "step_finished", data={"usage": {"input_tokens": 4_000, "output_tokens": 120}}))
    rejected = event(3, "review_rejected", phase="plan_to_artifacts", task="t2", attempt=1, data={"feedback": output})
    assert progress.lines(rejected) == [
        "    2.0s    4.1k  plan_to_artifacts   t2    review    attempt 1 rejected",
        "                    AssertionError: 100.0 != 90.0",
    ]


def test_text_of_models_cannot_move_the_cursor_or_forge_lines() -> None:
    progress = Progress(Style(None))
    (line,) = progress.lines(event(1, "task_ready", task="t1", data={"title": "a\x1b[2Jb\nerror[MN-0000]: c\r"}))
    assert not set(line) & set("\x1b\n\r")


def test_the_summary_fits_80_columns() -> None:
    style = Style(None)
    style.width = 80
    form = summary("interrupted", 130, workspace="/a/very/long/path" * 3)
    form["tasks"][0]["title"] = "a title that goes on and on " * 5
    shown = summary_lines(_typed(form), style)
    assert max(len(line) for line in shown) <= 80
    assert shown[-1].endswith(f"mnemosyne resume {RUN}")


WAITS = {"until": "2026-11-22T11:10:00.000Z", "class": "wait_until", "reason": "429 rate_limit_error: slow down"}


def test_a_run_that_waits_says_until_when_and_why() -> None:
    parked = {"item": "r-7f3a.4", "task": "t2", "role": "executor", **WAITS}
    style = Style(None)
    style.width = 80
    shown = summary_lines(_typed(summary("waiting", parked=[parked])), style)
    assert shown[0].startswith("waiting")
    [line] = [line for line in shown if "until" in line]
    assert line.split()[:4] == ["t2", "until", "2026-11-22", "11:10:00"]
    assert "wait_until: 429" in line
    assert len(line) <= 80


@pytest.mark.parametrize(("run_waits", "said"), [(True, "the run waits until"), (False, " waits until")])
def test_progress_says_until_when_work_waits_and_when_the_breaker_opens(run_waits: bool, said: str) -> None:
    progress = Progress(Style(None))
    lines = progress.lines(event(1, "work_parked", task="t2", role="executor", data={**WAITS, "run_waits": run_waits}))
    assert f"{said} 2026-11-22 11:10:00 UTC" in lines[0]
    assert "slow down" in lines[1]
    breaker = {"endpoint": "http://127.0.0.1:1", "model": "demo"}
    assert "one request at a time" in progress.lines(event(2, "breaker_opened", run=None, data=breaker))[0]
    closed = event(3, "breaker_closed", run=None, data={**breaker, "seconds": 7.5})
    assert "after 7.5 s" in progress.lines(closed)[0]


def test_a_model_without_a_price_is_never_shown_as_free() -> None:
    shown = summary_lines(_typed(summary(demo=False, model="mystery-1")), Style(None), priced=False)
    assert any("unknown" in line for line in shown if line.startswith("cost"))


def _typed(form: dict[str, Any]) -> Summary:
    return form  # type: ignore[return-value]


def test_truth_2_nothing_runs_in_a_run_that_is_interrupted() -> None:
    form = summary("interrupted", 130, phases=[{"name": "p", "state": "running", "seconds": None, "artifact": None}])
    form["tasks"][0]["state"] = "reviewing"
    shown = "\n".join(summary_lines(_typed(form), Style(None)))
    assert "running" not in shown
    assert "reviewing" not in shown
    assert shown.count("stopped") == 2


def test_a_message_of_a_server_can_neither_forge_lines_nor_fill_the_screen(
    script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    error = {"code": "MN-0400", "message": "no\x1b[2J\nerror[MN-0000]: forged", "reason": "x" * 9_000, "hint": "wait"}
    script.summary = summary("failed", 1, error=error)
    assert main(["orchestrate", "do it", "--quiet"]) == 1
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert len(err.splitlines()) == 3
    assert len(err) < 2_000


def test_show_tells_why_attempts_came_to_nothing(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.runs = [Overview(RUN, state="failed")]
    script.past = [
        event(1, "work_failed", task="t2", attempt=1, data={"error": "nothing was changed"}),
        event(2, "task_failed", task="t2", attempt=1, data={"state": "failed", "reason": "nothing was changed"}),
    ]
    assert main(["show", RUN]) == 0
    assert capsys.readouterr().out.count("attempt 1 failed: nothing was changed") == 1


def test_runs_fit_80_columns(script: Script, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("mnemosyne.cli.output.Output.width", 80)
    script.runs = [Overview("r-1234abcd", state="running", alive=True, pid=4_194_304)]
    assert main(["runs"]) == 0
    assert len(capsys.readouterr().out.strip()) <= 80
