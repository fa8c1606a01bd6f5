"""The page that people read at 3 a.m.: each message in it is one that the program says, and each command exists.

What the command line refuses is provoked here. The other messages are found in tests that provoke them, by name.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from messages_server import MessagesServer, failing
from mnemosyne.agents.agent_factory import resolve_source
from mnemosyne.agents.base_agent import check_result
from mnemosyne.cli import main
from mnemosyne.errors import AgentError, AgentUnavailable, WorkTimeout

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = [block.strip() for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MNEMOSYNE_STORE", str(tmp_path / "store.db"))
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "workspace").mkdir()
    return tmp_path


def in_the_page(said: str, **names: object) -> None:
    """The first line of ``said`` is a message of the page, with the names in the place of what differs."""
    line = said.splitlines()[0]
    for name, value in names.items():
        line = line.replace(str(value), name)
    assert line in MESSAGES, line


def first_line(capsys: pytest.CaptureFixture[str], *arguments: str, exit_code: int) -> str:
    assert main(arguments) == exit_code
    return capsys.readouterr().err


def test_there_are_twelve_symptoms_with_diagnosis_and_fix() -> None:
    symptoms = re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]
    assert len(symptoms) >= 12
    assert all("*Fix.*" in symptom for symptom in symptoms)


def test_no_key(capsys: pytest.CaptureFixture[str]) -> None:
    in_the_page(first_line(capsys, "orchestrate", "do it", "--workspace", "workspace", exit_code=3))


def test_a_refused_key(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "canary-000011112222")
    with MessagesServer(answer=lambda _: failing(401, "authentication_error", "no")) as server:
        flags = ["--workspace", "workspace", "--base-url", server.url]
        in_the_page(first_line(capsys, "orchestrate", "do it", *flags, exit_code=3))


def test_a_keychain_that_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    in_the_page(first_line(capsys, "secrets", "init", "--to", "keychain", exit_code=3))


def test_an_open_key_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("key").write_text("a-key-of-mine")
    Path("key").chmod(0o644)
    flags = ["--workspace", "workspace", "--api-key-file", "key"]
    in_the_page(
        first_line(capsys, "orchestrate", "do it", *flags, exit_code=3).replace("file key can", "file KEYFILE can")
    )


def test_a_refused_plan(capsys: pytest.CaptureFixture[str]) -> None:
    task = {"id": "t1", "title": "One", "depends_on": ["t9"], "acceptance": [{"command": "test -f one"}]}
    Path("plan.json").write_text(json.dumps({"tasks": [task]}))
    in_the_page(first_line(capsys, "orchestrate", "--plan", "plan.json", exit_code=2))


def test_a_store_that_cannot_be_opened(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    in_the_page(first_line(capsys, "runs", "--store", str(place), exit_code=3), STORE=place)


def test_a_server_that_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    url = "http://127.0.0.1:9"  # the discard port, on which nobody listens
    flags = ["--workspace", "workspace", "--base-url", url]
    in_the_page(first_line(capsys, "orchestrate", "do it", *flags, exit_code=3), URL=url)


def test_what_agents_do_wrong() -> None:
    with pytest.raises(AgentUnavailable) as missing:
        resolve_source("shaky_agents:Mine")
    in_the_page(missing.value.message)
    assert "No module named 'shaky_agents'" in missing.value.reason

    async def work() -> dict[str, object]:
        return {}

    pending = work()
    with pytest.raises(AgentError) as coroutine:
        check_result("Mine", pending)
    pending.close()
    in_the_page(coroutine.value.message.removeprefix("Mine.execute_work "))
    with pytest.raises(AgentError) as wrong:
        check_result("Mine", {"done": True})
    in_the_page(wrong.value.message.removeprefix("Mine.execute_work ").partition(":")[0])
    in_the_page(WorkTimeout("late").format().partition(":")[0])


@pytest.mark.parametrize(
    ("message", "source"),
    [
        ("waiting", "tests/e2e/test_waiting.py"),
        ("the role is degraded", "tests/python/test_logging.py"),
        ("execute failed", "tests/e2e/test_log.py"),
        ("the budget of", "tests/e2e/test_budget.py"),
    ],
)
def test_the_other_messages_are_provoked_by_tests_of_their_own(message: str, source: str) -> None:
    assert any(message in known for known in MESSAGES)
    assert message in (ROOT / source).read_text(encoding="utf-8")
