"""``mnemosyne dead``, ``pause`` and ``resume`` of a paused run: the real store, and a real process that works on it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mnemosyne import AgentError, AgentExecutionMixin, AgentRole, AgentSpec, InvalidInput, Orchestra
from mnemosyne.cli import main
from mnemosyne.models import Phase, WorkItem
from pydantic import SecretStr


class Deadly(AgentExecutionMixin):
    """Takes its agent down with every item, until there is a file that says that it is mended."""

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        if not Path(work_dict["context"]["mended"]).exists():
            raise RuntimeError("boom")
        return {"success": True, "data": {}}


class Echo(AgentExecutionMixin):
    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        return {"success": True, "data": {"id": work_dict["id"]}}


def item(name: str, **fields: Any) -> WorkItem:
    return WorkItem(id=name, description="x", phase=Phase.PLAN_TO_ARTIFACTS, role=AgentRole.EXECUTOR, **fields)


def orchestra(store: Path, agent: type) -> Orchestra:
    agents = {role: AgentSpec(source=agent) for role in AgentRole}
    return Orchestra(store=store, agents=agents, base_url="http://127.0.0.1:9", api_key=SecretStr("k"))


def answers(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main([*arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_dead_letter_is_listed_requeued_and_then_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, mended = tmp_path / "store.db", tmp_path / "mended"

    async def work(submit: bool) -> None:
        async with orchestra(store, Deadly) as opened:
            context: dict[str, Any] = {"mended": str(mended)}
            # Submitting the same key again only waits for the item.
            found = await opened.submit_work(item("bad", context=context), idempotency_key="k")
            if submit:
                with pytest.raises(AgentError, match="is dead"):
                    await found.result()
            else:
                assert (await found.result()).success

    asyncio.run(work(submit=True))
    (letter,) = answers(capsys, "dead", "--store", str(store))
    assert (letter["type"], letter["item"], letter["problem"]["code"]) == ("dead", "bad", "MN-0308")
    assert letter["crashes"] >= 3
    mended.touch()
    (done,) = answers(capsys, "dead", "requeue", "bad", "--note", "mended", "--store", str(store))
    assert done["done"] == "requeued"
    assert answers(capsys, "dead", "--store", str(store)) == []
    asyncio.run(work(submit=False))


def test_what_is_no_dead_letter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store.db"

    async def fill() -> None:
        async with orchestra(store, Echo) as opened:
            await (await opened.submit_work(item("good"))).result()

    asyncio.run(fill())
    for verb in ("requeue", "discard"):
        assert main(["dead", verb, "good", "--store", str(store)]) == 2
        assert "error[MN-0218]" in capsys.readouterr().err
    assert main(["dead", "--store", str(tmp_path / "none.db")]) == 0
    assert "no dead letters" in capsys.readouterr().out
    assert not (tmp_path / "none.db").exists()


async def test_work_may_be_unique_delayed_and_have_a_deadline(tmp_path: Path) -> None:
    async with orchestra(tmp_path / "store.db", Echo) as opened:
        later = await opened.submit_work(item("a"), unique_key="u", delay=0.5)
        assert (await opened.submit_work(item("b"), unique_key="u")).id == "a"
        missed = await opened.submit_work(item("c", depends_on=["a"]), deadline=0.1)
        with pytest.raises(AgentError) as error:
            await missed.result()
        assert error.value.code == "MN-0219"
        assert (await later.result()).data == {"id": "a"}
        with pytest.raises(InvalidInput):
            await opened.submit_work(item("d"), deadline=-1)


async def test_a_store_may_promise_less_and_says_so_only_in_words_that_it_knows(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        Orchestra(durability="none")  # type: ignore[arg-type]
    async with Orchestra(
        store=tmp_path / "store.db",
        agents={role: AgentSpec(source=Echo) for role in AgentRole},
        base_url="http://127.0.0.1:9",
        api_key=SecretStr("k"),
        durability="crash-safe",
    ) as opened:
        assert (await (await opened.submit_work(item("a"))).result()).success


@pytest.fixture
def slow_run(tmp_path: Path) -> Iterator[tuple[Path, str, subprocess.Popen[str]]]:
    """A run of the demo in a process of its own, which has begun."""
    store = tmp_path / "store.db"
    command = [sys.executable, "-m", "mnemosyne", "demo", "--json", "--store", str(store)]
    process = subprocess.Popen([*command, "--workspace", str(tmp_path / "work")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    # Events of agents may come first; they belong to no run.
    run = next(str(event["run"]) for line in process.stdout if (event := json.loads(line)).get("run"))
    yield store, run, process
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_run_is_paused_from_another_process_and_goes_on(
    slow_run: tuple[Path, str, subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    store, run, process = slow_run
    assert main(["pause", run, "--store", str(store)]) == 0
    assert f"{run} is paused" in capsys.readouterr().out
    assert main(["resume", run, "--store", str(store)]) == 0
    assert f"{run} is running, in process {process.pid}" in capsys.readouterr().out
    out, _ = process.communicate(timeout=60)
    events = [json.loads(line) for line in out.splitlines()]  # but those that the fixture read
    kinds = [event["kind"] for event in events if event["type"] == "event"]
    assert kinds.count("run_paused") == 1
    assert kinds.index("run_paused") < kinds.index("run_resumed")
    assert events[-1]["state"] == "done"
    assert main(["pause", run, "--store", str(store)]) == 2
    assert "error[MN-0220]" in capsys.readouterr().err
