"""Keys that are kept: the age file, profiles of the SDK, the commands; and never a piece of one is seen (SECRET-1)."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from messages_server import MessagesServer, failing
from mnemosyne.cli import main
from mnemosyne.config.agefile import AgeFile
from mnemosyne.config.secrets import SecretsManager, key_in, key_source
from mnemosyne.config.settings import ANTHROPIC, config_directory
from mnemosyne.errors import EnvironmentProblem, MissingCredential
from mnemosyne.llm.client import Client

KEY = "canary-a0b1c2d3e4f556677889"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("ANTHROPIC_CONFIG_DIR", str(tmp_path / "profiles"))
    monkeypatch.setenv("MNEMOSYNE_STORE", str(tmp_path / "store.db"))
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("mnemosyne.config.secrets._in_use", None)
    return tmp_path / "mnemosyne"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(capsys, monkeypatch)


class Command:
    """The command line with something on stdin; no piece of the key may be in what it says."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *words: str, given: str = "") -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        exit_code = main(words)
        out, err = self._capsys.readouterr()
        assert not pieces_in((out + err).encode())
        return exit_code, out, err


def pieces_in(content: bytes) -> list[int]:
    return [at for at in range(len(KEY) - 7) if KEY[at : at + 8].encode() in content]


def test_a_key_is_kept_in_the_age_file_shown_by_its_place_and_forgotten(run: Command, place: Path) -> None:
    file = f"the age file {place / 'secrets.age'}"
    assert run("config", "show-key")[0] == 3
    assert run("config", "set-key", given=f"{KEY}\n") == (0, f"the key for {ANTHROPIC} is kept in {file}\n", "")
    assert run("config", "show-key") == (0, f"the key for {ANTHROPIC}: {file}\n", "")
    assert f"from {file}" in run("doctor")[1]
    assert SecretsManager().resolve().get_secret_value() == KEY
    assert run("config", "unset-key")[1] == f"forgotten: {file}\n"
    assert run("config", "unset-key")[1] == "forgotten: nothing was kept\n"
    assert run("config", "show-key")[0] == 3


def test_secret_1_both_files_are_of_their_owner_alone_and_hold_no_key_in_the_open(run: Command, place: Path) -> None:
    run("secrets", "init", given=KEY)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()}
    assert modes == {"secrets.age": 0o600, "identity.txt": 0o600}
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert not any(pieces_in(path.read_bytes()) for path in place.iterdir())
    (place / "identity.txt").chmod(0o640)
    exit_code, _, err = run("config", "show-key")
    assert exit_code == 3
    assert f"error[MN-0251]: the key file {place / 'identity.txt'} can be read by others" in err
    assert f"chmod 600 {place / 'identity.txt'}" in err


def test_init_without_a_key_makes_the_place_ready_and_says_what_is_next(run: Command, place: Path) -> None:
    exit_code, out, _ = run("secrets", "init", "--to", "file")
    assert (exit_code, out.splitlines()[1]) == (0, "next: mnemosyne config set-key")
    assert [path.name for path in place.iterdir()] == ["identity.txt"]
    exit_code, _, err = run("secrets", "init", "--to", "keychain")
    assert exit_code == 3
    assert "error[MN-0642]: the OS keychain does not answer" in err
    assert "mnemosyne secrets init --to file" in err


def test_status_lists_every_place_in_its_order_and_which_one_is_used(
    run: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("secrets", "init", given=KEY)
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", KEY)
    exit_code, out, _ = run("secrets", "status", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert exit_code == 0
    assert [(row["place"], row["holds"], row["used"]) for row in rows] == [
        ("ANTHROPIC_API_KEY", False, False),
        ("ANTHROPIC_AUTH_TOKEN", True, True),
        ("the OS keychain", False, False),
        (f"the age file {place / 'secrets.age'}", True, False),
        ("the SDK profile default", False, False),
    ]
    assert "✓ used             ANTHROPIC_AUTH_TOKEN" in run("secrets", "status")[1]
    assert "there is no D-Bus session" in run("secrets", "status")[1]
    warned = run("config", "set-key", given="rk35-wh70-aa96")[2]
    assert warned == "warning: ANTHROPIC_AUTH_TOKEN holds a key too, and it is the one that is used\n"


def test_secret_1_a_key_as_an_argument_is_kept_with_a_warning_and_never_repeated(run: Command) -> None:
    exit_code, _, err = run("config", "set-key", KEY)
    assert exit_code == 0
    assert err.startswith("warning: others may see an argument")
    assert SecretsManager().resolve().get_secret_value() == KEY
    exit_code, _, err = run("config", "set-key", "one", KEY, "--debug")
    assert exit_code == 2
    assert "unrecognized arguments: [hidden]" in err


@pytest.mark.parametrize(("given", "code"), [("", "MN-0643"), (" \n", "MN-0643"), ("two words", "MN-0151")])
def test_what_is_no_key_is_refused_and_nothing_is_kept(run: Command, place: Path, given: str, code: str) -> None:
    exit_code, _, err = run("config", "set-key", given=given)
    assert exit_code == 2
    assert f"error[{code}]" in err
    assert not (place / "secrets.age").exists()


def test_rotating_puts_the_new_key_in_the_place_of_the_old_one_under_a_new_identity(run: Command, place: Path) -> None:
    assert run("secrets", "rotate")[0] == 2
    run("secrets", "init", given=KEY)
    old = (place / "identity.txt").read_text()
    assert run("secrets", "rotate")[0] == 0
    assert SecretsManager().resolve().get_secret_value() == KEY
    assert (place / "identity.txt").read_text() != old
    assert run("secrets", "rotate", given="rk35-wh70-aa96")[0] == 0
    assert SecretsManager().resolve().get_secret_value() == "rk35-wh70-aa96"
    (place / "identity.txt").write_text(old)
    assert run("config", "show-key")[0] == 3, "the old identity opens nothing any more"


def test_a_rotation_that_is_cut_off_anywhere_loses_no_key(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AgeFile(place)
    file.change(lambda _: {ANTHROPIC: KEY})
    whole = AgeFile._replace
    for cut in range(4):
        left = [cut]

        def replace(self: AgeFile, path: Path, content: bytes, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            whole(self, path, content)

        with monkeypatch.context() as patch:
            patch.setattr(AgeFile, "_replace", replace)
            if cut < 3:
                with pytest.raises(KeyboardInterrupt):
                    file.rotate()
            else:
                file.rotate()
        assert file.read() == {ANTHROPIC: KEY}


def _keep(server: str) -> None:
    SecretsManager(None, server).keep(f"the-key-of-{server}", "file")


def test_processes_that_keep_keys_at_the_same_time_lose_none() -> None:
    servers = [f"http://127.0.0.1:{port}" for port in range(1, 9)]
    with multiprocessing.get_context("fork").Pool(len(servers)) as pool:
        pool.map(_keep, servers)
    assert AgeFile(config_directory()).read() == {server: f"the-key-of-{server}" for server in servers}


@pytest.mark.parametrize("damage", ["cut", "other", "lost", "not a key"])
def test_a_file_that_cannot_be_opened_is_an_error_and_no_reason_to_look_elsewhere(place: Path, damage: str) -> None:
    file = AgeFile(place)
    file.change(lambda _: {ANTHROPIC: KEY})
    if damage == "cut":
        os.truncate(file.path, 100)
    elif damage == "lost":
        file.identity.unlink()
    elif damage == "other":
        other = AgeFile(place / "other")
        other.prepare()
        other.identity.rename(file.identity)
    else:
        file.identity.write_text("this is my diary")
    with pytest.raises(EnvironmentProblem) as raised:
        SecretsManager().resolve()
    assert raised.value.code == "MN-0640"
    assert SecretsManager().clear() == [f"the age file {file.path}"], "which is the way out that the error names"


def test_a_folder_that_cannot_be_written_is_told_and_the_old_file_stays(run: Command, place: Path) -> None:
    place.write_text("a file where the folder should be")
    exit_code, _, err = run("config", "set-key", given=KEY)
    assert exit_code == 3
    assert "error[MN-0641]" in err


def test_a_profile_of_the_sdk_is_used_for_its_own_server_and_its_token_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles = tmp_path / "profiles"
    for folder in ("configs", "credentials"):
        (profiles / folder).mkdir(parents=True)
    (profiles / "active_config").write_text("work\n")
    (profiles / "configs" / "work.json").write_text(json.dumps({"authentication": {"type": "user_oauth"}}))
    (profiles / "credentials" / "work.json").write_text(json.dumps({"access_token": KEY}))
    found = SecretsManager().resolve()
    assert (found.profile, found.source, found.get_secret_value()) == ("work", "the SDK profile work", "")
    assert SecretsManager(None, "http://127.0.0.1:9").resolve().profile is None
    monkeypatch.setenv("ANTHROPIC_PROFILE", "../work")
    with pytest.raises(MissingCredential):
        SecretsManager().resolve()


async def test_a_request_with_a_profile_carries_its_token(tmp_path: Path) -> None:
    profiles = tmp_path / "profiles"
    for folder in ("configs", "credentials"):
        (profiles / folder).mkdir(parents=True)
    with MessagesServer(answer=lambda _: failing(401, "authentication_error", "no")) as server:
        about = {"base_url": server.url, "authentication": {"type": "user_oauth"}}
        (profiles / "configs" / "default.json").write_text(json.dumps(about))
        token = profiles / "credentials" / "default.json"
        token.write_text(json.dumps({"access_token": KEY}))
        token.chmod(0o600)
        client = Client({"base_url": server.url})
        with pytest.raises(MissingCredential) as raised:
            await client.send({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]})
        await client.close()
        assert server.seen[0].headers["Authorization"] == f"Bearer {KEY}"
        assert "the key from the SDK profile default" in raised.value.reason
        assert not pieces_in(raised.value.format().encode())


@pytest.mark.parametrize("source", ["ANTHROPIC_API_KEY", "the age file", "--api-key-file"])
def test_a_refused_key_stops_the_run_at_once_with_the_source_that_gave_it(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "workspace").mkdir()
    with MessagesServer(answer=lambda _: failing(401, "authentication_error", f"bad key {KEY}")) as server:
        flags = ["--workspace", str(tmp_path / "workspace"), "--base-url", server.url]
        if source == "ANTHROPIC_API_KEY":
            monkeypatch.setenv(source, KEY)
        elif source == "the age file":
            assert run("config", "set-key", "--base-url", server.url, given=KEY)[0] == 0
        else:
            (tmp_path / "key").write_text(KEY)
            (tmp_path / "key").chmod(0o600)
            flags += ["--api-key-file", str(tmp_path / "key")]
        exit_code, _, err = run("orchestrate", "do it", *flags)
    assert exit_code == 3
    assert "error[MN-0202]: the server refused the API key" in err
    assert f"answered 401 authentication_error to the key from {source}" in err
    assert len(server.seen) == 1


def test_the_key_of_a_configuration_is_known_to_the_box_and_hidden() -> None:
    assert key_in({"model": "demo"}) is None
    found = key_in({"api_key": KEY, "key_source": "the OS keychain"})
    assert found is not None
    assert (found.get_secret_value(), key_source()) == (KEY, "the OS keychain")


@pytest.mark.skipif(shutil.which("age") is None, reason="age is not installed: make keychain")
def test_age_itself_opens_the_file_so_that_nobody_is_tied_to_us(place: Path) -> None:
    file = AgeFile(place)
    file.change(lambda _: {ANTHROPIC: KEY})
    words = ["age", "--decrypt", "--identity", str(file.identity), str(file.path)]
    opened = subprocess.run(words, capture_output=True, text=True, check=True)
    assert json.loads(opened.stdout) == {ANTHROPIC: KEY}
