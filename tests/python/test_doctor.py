"""The doctor: what is there, what is not, what to do about it; and never a word of a key (SECRET-1)."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest
from mnemosyne.agents.base_agent import validate_environment
from mnemosyne.cli import main
from mnemosyne.config import environment
from mnemosyne.config.environment import check_environment

KEY = "canary-1f2e3d4c5b6a79880011"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MNEMOSYNE_STORE", str(tmp_path / "state" / "store.db"))
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    for name in ("ANTHROPIC_AUTH_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, bool], str]:
    exit_code = main(["doctor", "--json", *arguments])
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    return exit_code, {line["name"]: line["ok"] for line in lines if line["type"] == "check"}, out + err


def test_everything_is_there_and_nothing_was_made(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    exit_code, checks, said = asked(capsys)
    assert (exit_code, set(checks.values())) == (0, {True}), said
    assert {"Python", "wheel", "anthropic SDK", "API key", "git", "store", "disk", "limits"} <= set(checks)
    assert list(place.iterdir()) == []
    assert main(["doctor"]) == 0
    assert "✓ API key        from ANTHROPIC_API_KEY" in capsys.readouterr().out


def test_secret_1_only_the_place_of_a_key_and_the_name_of_a_proxy_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://me:{KEY}@proxy:3128")
    said = asked(capsys)[2]
    assert "set: HTTP_PROXY" in said
    assert not [at for at in range(len(KEY) - 7) if KEY[at : at + 8] in said]


def test_each_failing_check_has_its_fix_and_the_exit_code_is_3(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    monkeypatch.setenv("PATH", str(place))
    monkeypatch.setattr(environment, "_LEAST_DISK", 1 << 62)
    monkeypatch.setattr(environment, "_LEAST_FILES", 1 << 40)
    monkeypatch.setattr(sys, "version_info", (3, 10))
    exit_code, checks, said = asked(capsys)
    assert exit_code == 3
    failed = {name for name, ok in checks.items() if not ok}
    assert failed == {"Python", "API key", "git", "disk", "limits"}
    assert "error[MN-0630]: 5 of 10 checks failed" in said
    assert all(check.fix for check in check_environment(place / "store.db") if not check.ok)


def test_a_server_is_asked_only_if_it_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert asked(capsys, "--base-url", url)[1]["server"] is False
        server.listen()
        assert asked(capsys, "--base-url", url)[1]["server"] is True
    assert asked(capsys, "--base-url", "ftp://x")[1]["server"] is False
    assert "server" not in asked(capsys)[1]


def test_a_store_that_cannot_be_written_or_lies_on_a_network_disk_fails(
    monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    def store_check(path: Path) -> environment.Check:
        return next(check for check in check_environment(path) if check.name == "store")

    assert not store_check(Path("/proc/1/nowhere/store.db")).ok
    monkeypatch.setattr(environment, "_file_system", lambda folder: "nfs4")
    assert "local disk" in store_check(place / "store.db").fix


def test_the_short_form_prints_a_mark_per_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert validate_environment()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:1] for line in lines] == ["✓", "✓"]
    assert "version 2." in lines[0]
    assert "from ANTHROPIC_API_KEY" in lines[1]
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    assert not validate_environment()
    assert capsys.readouterr().out.splitlines()[1].startswith("✗ API key: no API key was found; set ANTHROPIC_API_KEY")
