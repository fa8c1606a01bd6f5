"""Settings and secrets: where things are, which key is used, and that it is never shown (SECRET-1)."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
from mnemosyne.config import secrets
from mnemosyne.config.secrets import NO_KEY, SecretsManager, provide
from mnemosyne.config.settings import check_base_url, default_store, interpreter, state_directory
from mnemosyne.errors import EnvironmentProblem, InvalidInput, MissingCredential


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "ANTHROPIC_BASE_URL",
        "MNEMOSYNE_STORE",
        "XDG_STATE_HOME",
        "MNEMOSYNE_PYTHON",
    ):
        monkeypatch.delenv(name, raising=False)


def key_file(folder: Path, text: str = "sk-from-the-file\n", mode: int = 0o600) -> Path:
    file = folder / "key"
    file.write_text(text)
    file.chmod(mode)
    return file


def shown(key: object) -> str:
    return str(key) + repr(key)


def test_the_file_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-from-the-environment")
    key = SecretsManager(key_file(tmp_path), None, None).resolve()
    assert key is not None
    assert key.get_secret_value() == "sk-from-the-file"
    assert "sk-" not in shown(key)


def test_the_key_wins_over_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "a-token")
    token = SecretsManager(None, None, None).resolve()
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-key")
    key = SecretsManager(None, None, None).resolve()
    assert token is not None
    assert key is not None
    assert (token.get_secret_value(), key.get_secret_value()) == ("a-token", "a-key")


def test_the_key_of_an_embedding_program_comes_after_the_file_and_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "_provided", None)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "of-the-environment")
    provide("of-the-program\n")
    assert SecretsManager(None, None, None).resolve().get_secret_value() == "of-the-program"
    assert SecretsManager(None, "http://127.0.0.1:8080", None).resolve().get_secret_value() == "of-the-program"
    assert SecretsManager(key_file(tmp_path), None, None).resolve().get_secret_value() != "of-the-program"
    assert SecretsManager(None, None, "demo").resolve().get_secret_value() == NO_KEY


@pytest.mark.parametrize("key", ["", " \n", "two words", "two\nlines", "schlüssel"])
def test_secret_1_what_an_embedding_program_gives_is_a_key_or_refused_and_not_quoted(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "_provided", None)
    with pytest.raises(InvalidInput) as caught:
        provide(key)
    assert not key.strip() or key not in caught.value.format()
    assert secrets._provided is None


def test_a_named_server_without_a_key_gets_a_fixed_one() -> None:
    key = SecretsManager(None, "http://127.0.0.1:8080", None).resolve()
    assert key is not None
    assert key.get_secret_value() == NO_KEY == "mnemosyne-no-key"


def test_the_demo_model_never_gets_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-real")
    for url in (None, "http://127.0.0.1:8080"):
        key = SecretsManager(None, url, "demo").resolve()
        assert key is not None
        assert key.get_secret_value() == NO_KEY


def test_no_key_at_all_says_what_can_be_done() -> None:
    with pytest.raises(MissingCredential) as raised:
        SecretsManager(None, None, None).resolve()
    assert raised.value.code == "MN-0201"
    for way in ("ANTHROPIC_API_KEY", "--base-url", "mnemosyne demo"):
        assert way in raised.value.hint


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_key_file_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(EnvironmentProblem, match="read by others") as raised:
        SecretsManager(key_file(tmp_path, mode=mode), None, None).resolve()
    assert "chmod 600" in raised.value.hint


@pytest.mark.parametrize("text", ["", "\n\n", "two words", "line one\nline two", "kéy", "x" * 20_000])
def test_a_key_file_without_exactly_one_key_is_refused_and_not_quoted(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be used") as raised:
        SecretsManager(key_file(tmp_path, text), None, None).resolve()
    assert not text.strip() or text.strip()[:6] not in raised.value.format()


def test_a_key_file_that_is_missing_or_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "must-not-be-tried")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for file in (tmp_path / "missing", tmp_path, tmp_path / "pipe"):
        with pytest.raises(InvalidInput):
            SecretsManager(file, None, None).resolve()


def test_the_store_is_in_the_state_directory_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_store() == tmp_path / ".local/state/mnemosyne/store.db"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert default_store() == tmp_path / "state/mnemosyne/store.db"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_store() == tmp_path / ".local/state/mnemosyne/store.db"
    monkeypatch.setenv("MNEMOSYNE_STORE", str(tmp_path / "mine.db"))
    assert default_store() == tmp_path / "mine.db"


def test_two_stores_in_one_folder_share_no_state(tmp_path: Path) -> None:
    assert state_directory(tmp_path / "a.db") != state_directory(tmp_path / "b.db")
    assert state_directory(tmp_path / "a.db").parent == tmp_path


def test_the_interpreter_is_this_python_unless_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interpreter() == sys.executable
    monkeypatch.setenv("MNEMOSYNE_PYTHON", "/bin/sh")
    assert interpreter() == "/bin/sh"
    monkeypatch.setenv("MNEMOSYNE_PYTHON", "/nowhere/python3")
    with pytest.raises(InvalidInput, match="MNEMOSYNE_PYTHON"):
        interpreter()


def test_an_embedding_program_is_never_taken_for_an_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "embed"
    program.write_text("#!/bin/sh\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    for executable in (str(program), ""):
        monkeypatch.setattr(sys, "executable", executable)
        found = interpreter()
        assert found != str(program)
        assert Path(found).name.startswith("python")


@pytest.mark.parametrize("url", ["ftp://host", "not a url", "", "http://user:secret@host"])
def test_a_base_url_that_cannot_work_is_bad_input(url: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        check_base_url(url)
    assert raised.value.code == "MN-0111"
    assert "secret" not in raised.value.format()


def test_a_base_url_loses_the_slash_at_its_end() -> None:
    assert check_base_url("http://localhost:1/") == "http://localhost:1"
