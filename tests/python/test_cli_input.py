"""Bad input gets one clear error: code, reason, hint, exit code, and nothing is stored or asked of anybody."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import mnemosyne
import pytest
from mnemosyne.cli import main

TASK = {"id": "t1", "title": "One", "acceptance": [{"command": "test -f one"}]}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder and a store of its own, and no key from outside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MNEMOSYNE_STORE", str(tmp_path / "store.db"))
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: str, exit_code: int = 2) -> str:
    """Run a command that has to be refused before it stores anything; returns what it said."""
    assert main(arguments) == exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error[{code}]: ")
    assert "\n  hint: " in err
    assert "Traceback" not in err
    assert not Path("store.db").exists()
    return err


@pytest.mark.parametrize("prompt", ["", "   \n", None])
def test_an_empty_prompt_is_refused(capsys: pytest.CaptureFixture[str], prompt: str | None) -> None:
    refused(capsys, "orchestrate", *([] if prompt is None else [prompt]), code="MN-0101")


def test_an_empty_prompt_on_stdin_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    refused(capsys, "orchestrate", "-", code="MN-0101")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"{", "not JSON"), (b"\xff\xfe{}", "not UTF-8"), (b"[" * 100_000, "not JSON")],
    ids=["missing", "cut", "latin", "deep"],
)
def test_a_plan_that_cannot_be_read_is_refused(
    capsys: pytest.CaptureFixture[str], content: bytes | None, reason: str
) -> None:
    if content is not None:
        Path("plan.json").write_bytes(content)
    assert reason in refused(capsys, "orchestrate", "--plan", "plan.json", code="MN-0102")


def test_a_prompt_file_that_is_missing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'nowhere'" in refused(capsys, "orchestrate", "@nowhere", code="MN-0102")


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"tasks": [{**TASK, "depend_on": []}]}, "tasks[0].depend_on: unknown key"),
        (
            {"tasks": [{**TASK, "acceptance": [{"comand": "x", "command": "y"}]}]},
            "tasks[0].acceptance[0].comand: unknown",
        ),
        ({"tasks": [TASK], "extra": 1}, "extra: unknown key"),
        ({"tasks": []}, "tasks: "),
        ([], "its top level: "),
    ],
    ids=["task", "acceptance", "plan", "empty", "list"],
)
def test_a_malformed_plan_is_refused_by_the_path_of_its_key(
    capsys: pytest.CaptureFixture[str], plan: object, said: str
) -> None:
    Path("plan.json").write_text(json.dumps(plan))
    assert said in refused(capsys, "orchestrate", "--plan", "plan.json", code="MN-0103")


def test_a_prompt_and_a_plan_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "orchestrate", "do it", "--plan", "plan.json", code="MN-0115")


@pytest.mark.parametrize(
    "agent",
    ["executor", "executor=", "executor=module", "executor=module:", "painter=a:B", "=a:B", "executor=a b:C"],
)
def test_an_agent_that_is_not_role_module_class_is_refused(capsys: pytest.CaptureFixture[str], agent: str) -> None:
    refused(capsys, "orchestrate", "do it", "--agent", agent, code="MN-0109")


def test_a_role_given_twice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "demo", "--agent", "executor=a:B", "--agent", "executor=c:D", code="MN-0109")


@pytest.mark.parametrize(
    "flags",
    [
        ["--max-concurrent", "0"],
        ["--max-concurrent", "65"],
        ["--max-concurrent", "four"],
        ["--budget-usd", "0"],
        ["--budget-usd", "nan"],
        ["--budget-usd", "inf"],
        ["--budget-tokens", "-1"],
        ["--budget-tokens", "1.5"],
        ["--budget-seconds", "0"],
        ["--budget-depth", "0"],
        ["--budget-per-task", ""],
        ["--budget-per-task", "usd"],
        ["--budget-per-task", "usd=0"],
        ["--budget-per-task", "euro=1"],
        ["--budget-per-task", "calls=1.5"],
        ["--budget-per-agent", "calls=1,calls=2"],
        ["--mode", "demo"],
        ["--kill", "three"],
        ["--murder", "3"],
    ],
    ids=" ".join,
)
def test_flags_out_of_range_and_unknown_flags_are_refused(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    assert "mnemosyne demo --help" in refused(capsys, "demo", *flags, code="MN-0115")
    assert not Path("mnemosyne-demo").exists()


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["show"], ["runs", "extra"], ["demo", "serve", "--port", "x"]])
def test_a_command_line_that_says_nothing_is_refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    refused(capsys, *arguments, code="MN-0115")


def test_a_limit_in_dollars_for_a_model_without_a_price_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "orchestrate", "do it", "--model", "mystery-1", "--budget-usd", "1", code="MN-0119")
    assert "--budget-tokens" in said


def test_a_workspace_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "orchestrate", "do it", "--workspace", "nowhere", code="MN-0107")


def test_the_demo_refuses_a_workspace_with_something_else_and_leaves_it_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    refused(capsys, "demo", "--workspace", "mine", code="MN-0114")
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("verb", ["show", "events", "cancel", "resume"])
def test_a_run_that_does_not_exist_is_refused_without_making_a_store(
    capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    refused(capsys, verb, "r-404", code="MN-0110")


def test_resume_with_nothing_to_resume_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "resume", code="MN-0118")


def test_runs_of_a_store_that_is_not_there_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    assert "no runs" in capsys.readouterr().out
    assert main(["runs", "--json"]) == 0
    assert capsys.readouterr().out == ""
    assert not Path("store.db").exists()


@pytest.mark.parametrize("arguments", [["orchestrate", "", "--json"], ["--json", "demo", "--max-concurrent", "0"]])
def test_with_json_an_error_before_a_run_is_one_summary_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert (summary["type"], summary["run"], summary["state"], summary["exit_code"]) == ("summary", None, "failed", 2)
    assert summary["error"]["code"] in err
    assert set(summary) == SUMMARY_KEYS


SUMMARY_KEYS = {
    "type", "schema", "run", "state", "exit_code", "model", "demo", "workspace", "phases", "tasks", "usage", "budget",
    "spent", "parked", "restarts", "resumes", "seconds", "error", "resume",
}  # fmt: skip


@pytest.mark.parametrize("arguments", [["--store", "other.db", "runs"], ["runs", "--store", "other.db"]])
def test_common_flags_may_stand_before_and_after_the_verb(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 0
    assert "other.db" in capsys.readouterr().out


def test_what_is_not_our_error_is_one_line_and_a_traceback_only_with_debug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> int:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("mnemosyne.cli.runs.runs", explode)
    assert main(["runs"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error[MN-0900]: unexpected ZeroDivisionError: boom")
    assert "--debug" in said
    assert "Traceback" not in said
    assert main(["runs", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from mnemosyne.cli import main; code = main(['--help']);"
        "heavy = {'pydantic', 'anthropic', 'asyncio', 'mnemosyne._core'} & set(sys.modules);"
        "print(heavy, file=sys.stderr); sys.exit(code or bool(heavy))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(mnemosyne.__file__).resolve().parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    for verb in ("orchestrate", "resume", "runs", "show", "events", "cancel", "demo"):
        assert f"\n    {verb}" in done.stdout


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mnemosyne {mnemosyne.__version__}\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"do\0it", "NUL"), (b"x" * 1_000_001, "more than 1,000,000 bytes")],
    ids=["nul", "long"],
)
def test_a_prompt_that_is_no_text_or_too_long_is_refused(
    capsys: pytest.CaptureFixture[str], content: bytes, reason: str
) -> None:
    Path("wish").write_bytes(content)
    assert reason in refused(capsys, "orchestrate", "@wish", code="MN-0102")


def test_a_prompt_file_without_an_end_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "more than" in refused(capsys, "orchestrate", "@/dev/zero", code="MN-0102")


def test_a_key_given_twice_in_a_plan_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("plan.json").write_text('{"tasks": [], "tasks": []}')
    assert "'tasks' is given twice" in refused(capsys, "orchestrate", "--plan", "plan.json", code="MN-0102")


def test_a_nul_in_a_plan_is_refused_and_its_escape_as_text_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    plan = {"tasks": [{**TASK, "acceptance": [{"command": "test -f \0"}]}]}
    Path("plan.json").write_text(json.dumps(plan))
    assert "NUL" in refused(capsys, "orchestrate", "--plan", "plan.json", code="MN-0103")
    plan["tasks"][0]["acceptance"] = [{"command": "grep -q '\\u0000' x"}]
    Path("plan.json").write_text(json.dumps(plan))
    assert "no API key" in refused(capsys, "orchestrate", "--plan", "plan.json", code="MN-0201", exit_code=3)


def test_a_pattern_in_a_refusal_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    Path("plan.json").write_text(json.dumps({"tasks": [{**TASK, "id": "a b"}]}))
    assert "tasks[0].id: only letters" in refused(capsys, "orchestrate", "--plan", "plan.json", code="MN-0103")


@pytest.mark.parametrize(
    "flags",
    [
        ["--workspace", ""],
        ["--workspace", "~nobody-of-this-name/project"],
        ["--store", ""],
        ["--model", ""],
        ["--budget-tokens", "9" * 40],
        ["--budget-tokens", "9" * 5000],
    ],
    ids=lambda flags: flags[0],
)
def test_values_that_mean_nothing_are_refused_in_few_words(
    capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    assert len(refused(capsys, "orchestrate", "do it", *flags, code="MN-0115")) < 300


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://host",
        "http://",
        "http://[::1",
        "http://host:99999",
        "http://host:port",
        "http://host/\x1b[2J",
        "host",
    ],
)
def test_a_base_url_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], url: str) -> None:
    said = refused(capsys, "orchestrate", "do it", "--base-url", url, code="MN-0111")
    assert "\x1b" not in said


@pytest.mark.parametrize("url", ["http://me:sk-secret@host", "me:sk-secret@host", "http://sk-secret@host:port"])
def test_secret_1_a_password_in_a_base_url_is_refused_and_not_repeated(
    capsys: pytest.CaptureFixture[str], url: str
) -> None:
    assert "secret" not in refused(capsys, "orchestrate", "do it", "--base-url", url, code="MN-0111")


@pytest.mark.parametrize("place", ["/", "~"])
def test_a_home_and_the_root_are_no_workspace(capsys: pytest.CaptureFixture[str], place: str) -> None:
    refused(capsys, "orchestrate", "do it", "--model", "demo", "--workspace", place, code="MN-0107")


def test_a_workspace_that_may_not_be_written_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    refused(capsys, "orchestrate", "do it", "--model", "demo", code="MN-0107")
    Path("mine").mkdir()
    refused(capsys, "demo", "--workspace", "mine", code="MN-0107")


@pytest.mark.parametrize("verb", [["runs"], ["show", "r-1"], ["resume"], ["orchestrate", "do it", "--model", "demo"]])
@pytest.mark.parametrize("kind", ["pipe", "folder", "below a file", "loop"])
def test_a_store_that_cannot_be_one_is_refused_and_never_waited_for(
    capsys: pytest.CaptureFixture[str], verb: list[str], kind: str
) -> None:
    store = Path("other.db")
    if kind == "pipe":
        os.mkfifo(store)
    elif kind == "folder":
        store.mkdir()
    elif kind == "loop":
        store.symlink_to(store.name)
    else:
        store.touch()
        store = store / "store.db"
    refused(capsys, *verb, "--store", str(store), code="MN-0203", exit_code=3)


def test_a_hint_names_the_store_that_was_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "hint: mnemosyne runs --store 'my store.db'\n" in refused(
        capsys, "show", "r-404", "--store", "my store.db", code="MN-0110"
    )


def test_a_demo_server_that_cannot_start_ends_like_every_error(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "demo", "serve", "--log", "absent/log", code="MN-0211", exit_code=3)
    assert main(["demo", "serve", "--log", "absent/log", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "MN-0211"


def test_a_folder_that_is_gone_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    try:
        assert main(["orchestrate", "do it", "--model", "demo"]) == 3
    finally:
        os.chdir(tmp_path)
    assert "error[MN-0212]" in capsys.readouterr().err
