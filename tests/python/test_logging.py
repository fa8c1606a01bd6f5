"""The log: one stream in time order, about what, without secrets, and never in anybody's way."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from mnemosyne import AgentExecutionMixin, AgentRole, AgentSpec, Orchestra
from mnemosyne.agents.base_agent import working_on
from mnemosyne.agents.context import AgentContext
from mnemosyne.errors import EnvironmentProblem, InvalidInput
from mnemosyne.log_context import log_context
from mnemosyne.logging_config import configure_logging, get_logger, stop_logging
from mnemosyne.models import Phase, WorkItem
from mnemosyne.redaction import hide_secret
from pydantic import SecretStr

KEY = "canary-77aa66bb55cc44dd33ee"


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("MNEMOSYNE_LOG_LEVEL", "MNEMOSYNE_LOG_FILE", "MNEMOSYNE_LOG_FORMAT"):
        monkeypatch.delenv(name, raising=False)
    levels = {name: logging.getLogger(name).level for name in ("mnemosyne", "mnemosyne.bridge", "mnemosyne.quiet")}
    yield
    stop_logging()
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def context() -> AgentContext:
    item = WorkItem(id="r-1.9", description="d", phase=Phase.PLAN_TO_ARTIFACTS, role="executor", attempt=2)
    return AgentContext(item, epoch=3, agent_id="executor-1", generation=4)


def logged(say: Callable[[], None], **how: object) -> list[str]:
    stream = io.StringIO()
    configure_logging(stream=stream, **how)  # type: ignore[arg-type]
    say()
    stop_logging()
    return stream.getvalue().splitlines()


def test_every_line_says_what_it_is_about_also_each_line_of_a_traceback() -> None:
    def say() -> None:
        with working_on(context()):
            try:
                raise KeyError("name")
            except KeyError:
                get_logger("test").exception("it failed\nbadly")

    lines = logged(say)
    about = "mnemosyne.test [item=r-1.9 attempt=2 role=executor agent=executor-1 generation=4 epoch=3]"
    assert all(f"ERROR   {about}" in line for line in lines)
    assert lines[0].endswith("] it failed")
    assert lines[1].endswith("] | badly")
    assert lines[-1].endswith("] | KeyError: 'name'")
    assert any("Traceback" in line for line in lines)


def test_json_has_the_same_as_fields() -> None:
    def say() -> None:
        with working_on(context()):
            try:
                raise KeyError("name")
            except KeyError:
                get_logger("mnemosyne.test").exception("it %s", "failed")

    [line] = logged(say, format="json")
    said = json.loads(line)
    assert (said["level"], said["logger"], said["message"]) == ("ERROR", "mnemosyne.test", "it failed")
    assert (said["item"], said["attempt"], said["agent"], said["epoch"]) == ("r-1.9", 2, "executor-1", 3)
    assert said["exception"].endswith("KeyError: 'name'")


def test_lines_are_written_in_the_order_of_their_times_whenever_they_arrive() -> None:
    log = get_logger("test")

    def say() -> None:
        now = time.time()
        for late in (0.0, -0.03, 0.01, -0.01):
            record = log.makeRecord(log.name, logging.INFO, "rust", 0, f"{late:+.2f}", (), None)
            record.created = now + late
            log.handle(record)

    assert [line.split()[-1] for line in logged(say)] == ["-0.03", "-0.01", "+0.00", "+0.01"]


def test_levels_are_set_for_all_and_for_a_module() -> None:
    def say() -> None:
        for name in ("mnemosyne.bridge", "mnemosyne.quiet"):
            for level in ("debug", "info", "warning"):
                getattr(get_logger(name), level)(level)

    said = [line.split()[1:3] for line in logged(say, level="warning,mnemosyne.bridge=debug")]
    assert said == [
        ["DEBUG", "mnemosyne.bridge"],
        ["INFO", "mnemosyne.bridge"],
        ["WARNING", "mnemosyne.bridge"],
        ["WARNING", "mnemosyne.quiet"],
    ]


@pytest.mark.parametrize("level", ["loud", "info,", "info,other=debug", "=info", "mnemosyne="])
def test_a_level_that_does_not_exist_is_refused(level: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        configure_logging(level)
    assert caught.value.code == "MN-0620"


def test_a_file_that_cannot_be_written_is_refused_and_a_format_that_does_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        configure_logging(file=tmp_path)
    assert caught.value.code == "MN-0621"
    monkeypatch.setenv("MNEMOSYNE_LOG_FORMAT", "xml")
    with pytest.raises(InvalidInput) as refused:
        configure_logging()
    assert refused.value.code == "MN-0620"


def test_the_file_is_private_and_put_aside_when_it_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mnemosyne.log"
    file.touch(0o644)
    monkeypatch.setenv("MNEMOSYNE_LOG_FILE", str(file))
    configure_logging(largest_file=2_000, files_kept=2)
    for number in range(100):
        get_logger("test").info("line %d %s", number, "x" * 50)
    stop_logging()
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == ["mnemosyne.log", "mnemosyne.log.1", "mnemosyne.log.2"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert all(path.stat().st_size <= 2_100 for path in files)
    assert "line 99" in file.read_text()


def test_secret_1_no_piece_of_a_key_is_in_a_line_by_value_or_by_shape() -> None:
    hide_secret(KEY)

    def say() -> None:
        try:
            raise RuntimeError(f"401 for {KEY}")
        except RuntimeError:
            get_logger("test").exception("key %s, beginning %s, other sk-ant-api03-zzzzzzzz", KEY, KEY[:10])

    for form in ("text", "json"):
        said = "\n".join(logged(say, format=form))
        assert not [at for at in range(len(KEY) - 7) if KEY[at : at + 8] in said]
        assert "zzzz" not in said


def test_a_line_cannot_be_forged_and_cannot_move_the_cursor() -> None:
    def say() -> None:
        get_logger("test").warning("a\x1b[2J\r2026-01-01T00:00:00.000Z ERROR   mnemosyne.store [run=r-2] forged")

    lines = logged(say)
    assert all("mnemosyne.test" in line and line.isprintable() for line in lines)


class Stuck(io.StringIO):
    """A disk that hangs."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def write(self, text: str) -> int:
        self.free.wait()
        return super().write(text)


def test_a_disk_that_hangs_holds_nobody_up_and_what_was_lost_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnemosyne.logging_config._LIMIT", 100)
    disk = Stuck()
    configure_logging(stream=disk)
    log = get_logger("test")
    log.info("the first")
    while threading.active_count() and not disk.free.is_set() and _waiting() > 0:
        time.sleep(0.01)  # until the writer is stuck with it
    for number in range(250):
        log.info("line %d", number)
    assert _waiting() == 100, "memory is bounded"
    disk.free.set()
    stop_logging()
    assert "150 log lines were lost" in disk.getvalue()


def _waiting() -> int:
    from mnemosyne import logging_config

    assert logging_config._writer is not None
    return len(logging_config._writer._waiting)


def test_a_disk_that_is_full_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(file=Path("/dev/full"))
    for _ in range(100):
        get_logger("test").info("x" * 1000)
    stop_logging()
    assert capsys.readouterr().err == ""


def test_arguments_are_read_when_a_line_is_said_and_not_when_it_is_written() -> None:
    def say() -> None:
        things = ["one"]
        get_logger("test").info("%s", things)
        things.append("two")

    assert logged(say)[0].endswith("['one']")


async def test_a_programs_own_handlers_see_rusts_lines_one_for_each_change(caplog: pytest.LogCaptureFixture) -> None:
    from mnemosyne import ClaudeAgentBridge

    bridge = await ClaudeAgentBridge.spawn("reviewer", "nowhere_for_the_log:Agent")
    told = 0
    for _ in range(500):
        found = [record for record in caplog.records if "nowhere_for_the_log" in record.getMessage()]
        if told := len(found):
            break
        await asyncio.sleep(0.01)
    await bridge.shutdown()
    assert told == 1
    [record] = found
    assert (record.levelname, record.name, log_context(record)) == (
        "WARNING",
        "mnemosyne.runtime",
        {"role": "reviewer"},
    )
    assert record.getMessage().startswith("the role is degraded: ")


class Stumbles(AgentExecutionMixin):
    stones: ClassVar[list[int]] = [1]

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        if self.stones:
            self.stones.pop()
            raise RuntimeError("a stone in the way")
        return {"success": True}


async def test_a_users_item_whose_agent_raises_leaves_a_box_about_it_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agents = {AgentRole.EXECUTOR: AgentSpec(source=Stumbles)}
    item = WorkItem(id="w-stone", description="d", phase=Phase.PLAN_TO_ARTIFACTS, role=AgentRole.EXECUTOR)
    async with Orchestra(store=tmp_path / "store.db", agents=agents, api_key=SecretStr("none")) as orchestra:
        assert (await (await orchestra.submit_work(item)).result()).success
    [record] = [record for record in caplog.records if record.name == "mnemosyne.agents" and record.exc_info]
    box = record.getMessage()
    assert "a stone in the way" in box
    assert "Troubleshooting" in box
    assert "w-stone" in box


def test_nothing_is_kept_of_a_process_that_ends(tmp_path: Path) -> None:
    import subprocess
    import sys

    file = tmp_path / "log"
    script = "from mnemosyne.logging_config import *; configure_logging(); get_logger('x').info('the last words')"
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "MNEMOSYNE_LOG_FILE": str(file)})
    assert "the last words" in file.read_text()
