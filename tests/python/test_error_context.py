"""The box that says what happened, where, and what to do; and that no secret is in it (SECRET-1)."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from mnemosyne import error_context
from mnemosyne.cli import main
from mnemosyne.error_context import Environment, create_error_context
from mnemosyne.errors import AgentError, BudgetExceeded, Fenced, MissingCredential, ModelError, ModelParked, WorkTimeout
from mnemosyne.models import Phase, WorkItem
from mnemosyne.redaction import hide_secret

BOX = Path(__file__).parent / "snapshots" / "error_box.txt"
KNOWN = Environment("3.11.9", "2.14.0", "ANTHROPIC_API_KEY", "Linux 6.1 x86_64", 71_500_000_000)


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_context, "_environment", lambda: KNOWN)


def item(phase: Phase = Phase.PLAN_TO_ARTIFACTS) -> WorkItem:
    return WorkItem(id="r-7f3a.9", description="Add a --verbose flag", phase=phase, role="executor", attempt=2)


def test_the_box_has_the_form_that_people_know() -> None:
    error = AgentError("greeter raised KeyError: 'name'", reason="the item's context has no name", hint="give it one")
    context = create_error_context(
        error,
        item=item(),
        agent_id="executor-1",
        generation=3,
        run="r-7f3a",
        task="t1",
        session_active=True,
        worker_stderr="\n".join(f"line {number}" for number in range(20)),
    )
    assert context.format() == BOX.read_text(encoding="utf-8").rstrip("\n")


def test_the_same_is_had_as_json_with_every_field() -> None:
    form = create_error_context(WorkTimeout("late"), item=item(), agent_id="executor-1").to_dict()
    assert json.loads(json.dumps(form)) == form
    assert (form["code"], form["phase"], form["role"], form["generation"]) == (
        "MN-0302",
        "plan_to_artifacts",
        "executor",
        None,
    )


PARKED = ModelParked("wait", failure="overloaded", seconds=300.0)


@pytest.mark.parametrize(
    ("error", "phase", "looked_at", "done"),
    [
        (MissingCredential("no key"), None, "mnemosyne secrets status", "export ANTHROPIC_API_KEY"),
        (ModelError("bad answer"), Phase.PROMPT_TO_SPEC, "does the prompt say", "orchestrate @FILE"),
        (ModelError("bad answer"), Phase.FULL_SPEC_TO_PLAN, "wrong with the plan", "--plan FILE"),
        (ModelError("bad answer"), Phase.PLAN_TO_ARTIFACTS, "--conversation t1", "mnemosyne retry r-7f3a t1"),
        (RuntimeError("x"), Phase.PLAN_TO_ARTIFACTS, "--evidence t1", "mnemosyne retry r-7f3a t1"),
        (ModuleNotFoundError("no module"), None, "PYTHONPATH", "pip install"),
        (AttributeError("no x"), None, "a value that is None", "--debug"),
        (OSError(errno.ENOSPC, "full"), None, "df -h", "make room"),
        (MemoryError(), None, "free -m", "--max-concurrent"),
        (WorkTimeout("late"), Phase.PLAN_TO_ARTIFACTS, "which command or turn", "timeout_seconds"),
        (PARKED, Phase.PLAN_TO_ARTIFACTS, "at its limit", "nothing has to be done"),
        (Fenced("over"), None, "asleep", "nothing has to be done"),
        (BudgetExceeded("used up"), None, "what was spent", "mnemosyne resume r-7f3a --budget-usd X"),
    ],
)
def test_the_advice_is_chosen_by_class_and_phase(
    error: Exception, phase: Phase | None, looked_at: str, done: str
) -> None:
    about = None if phase is None else item(phase)
    context = create_error_context(error, item=about, run="r-7f3a", task="t1")
    assert looked_at in "\n".join(context.troubleshooting)
    assert done in "\n".join(context.recovery)


def test_an_exception_whose_text_cannot_be_had_and_one_without_words_still_make_a_box() -> None:
    class Rude(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    class Leaving(Exception):
        def __str__(self) -> str:
            raise SystemExit(3)

    assert "it has no text" in create_error_context(Rude()).format()
    assert "it has no text" in create_error_context(Leaving()).format()
    assert "ValueError" in create_error_context(ValueError()).message


def test_the_box_keeps_its_form_whatever_the_error_says() -> None:
    text = "\x1b[31m\r\n" + "word " * 400 + "w" * 300 + "\u202e\t"
    lines = create_error_context(RuntimeError(text), worker_stderr="\x1b[2J").format().splitlines()
    assert {len(line) for line in lines} == {78}
    assert all(line.isprintable() for line in lines)


def test_secret_1_neither_a_key_nor_a_piece_of_it_is_in_the_box() -> None:
    key = "canary-9f8e7d6c5b4a39281706"
    hide_secret(key)
    error = AgentError(f"401 for {key}", reason=f"it began with {key[:9]}", hint=f"not {key[3:15]}")
    box = create_error_context(error, item=item(), worker_stderr=f"Authorization: Bearer {key}")
    said = box.format() + json.dumps(box.to_dict())
    assert not [at for at in range(len(key) - 7) if key[at : at + 8] in said]


def test_debug_shows_the_box_and_without_it_there_is_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MNEMOSYNE_STORE", str(tmp_path / "store.db"))
    assert main(["show", "r-none"]) == 2
    assert "Troubleshooting:" not in capsys.readouterr().err
    assert main(["show", "r-none", "--debug"]) == 2
    said = capsys.readouterr().err
    assert "Troubleshooting:" in said
    assert "│   → mnemosyne explain MN-0110" in said
