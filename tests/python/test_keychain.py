"""The OS keychain, on a real Secret Service: another process finds what one kept, and nothing waits longer than 2 s."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mnemosyne.config import keychain
from mnemosyne.config.secrets import SecretsManager
from mnemosyne.config.settings import ANTHROPIC
from secret_service import SecretService, missing

KEY = "canary-c0ffee00112233445566"
needs_a_keychain = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecretService]:
    service = SecretService(tmp_path_factory.mktemp("keychain"))
    yield service
    service.close()


@pytest.fixture
def session(service: SecretService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SecretService:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", service.address)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    deadline = time.monotonic() + 20
    while True:  # the daemon takes its name on the bus when it is ready
        try:
            keychain.remove()
            return service
        except keychain.KeychainSilent:
            assert time.monotonic() < deadline, "the keychain does not come up"
            time.sleep(0.05)


def command(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "mnemosyne", *words]
    return subprocess.run(arguments, input=given, capture_output=True, text=True, timeout=60, check=False)


@needs_a_keychain
def test_a_key_that_one_process_kept_is_found_by_another_and_forgotten_by_a_third(session: SecretService) -> None:
    kept = command("config", "set-key", given=f"{KEY}\n")
    assert (kept.returncode, kept.stdout) == (0, f"the key for {ANTHROPIC} is kept in the OS keychain\n"), kept.stderr
    assert "from the OS keychain" in command("doctor").stdout
    shown = command("config", "show-key")
    assert (shown.returncode, shown.stdout) == (0, f"the key for {ANTHROPIC}: the OS keychain\n")
    found = SecretsManager().resolve()
    assert (found.get_secret_value(), found.source) == (KEY, keychain.KEYCHAIN)
    assert SecretsManager(None, "http://127.0.0.1:9").resolve().source == "", "it is for Anthropic's server alone"
    assert command("config", "unset-key").stdout == "forgotten: the OS keychain\n"
    gone = command("config", "show-key")
    assert (gone.returncode, gone.stdout) == (3, "")
    for said in (kept, shown, gone):
        assert KEY[:8] not in said.stdout + said.stderr


@needs_a_keychain
def test_secret_1_the_keychain_holds_no_key_in_the_open(session: SecretService) -> None:
    keychain.write(ANTHROPIC, KEY)
    at_rest = session.bytes_at_rest()
    assert at_rest, "something is kept"
    assert not [at for at in range(len(KEY) - 7) if KEY[at : at + 8].encode() in at_rest]


@needs_a_keychain
def test_the_environment_wins_over_the_keychain_and_the_keychain_over_the_age_file(
    session: SecretService, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = SecretsManager()
    manager.age_file.change(lambda _: {ANTHROPIC: "zq81-xk20-vv37"})
    keychain.write(ANTHROPIC, "wj64-pb95-rr08")
    assert manager.resolve().get_secret_value() == "wj64-pb95-rr08"
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "hd72-mc39-tt15")
    assert manager.resolve().get_secret_value() == "hd72-mc39-tt15"
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN")
    manager.keep("yn50-gs46-oo28", "file")
    assert manager.resolve().get_secret_value() == "yn50-gs46-oo28", "no old key is left where it would win"
    manager.keep("bf93-lu07-ee61", "keychain")
    assert (manager.resolve().get_secret_value(), manager.age_file.read()) == ("bf93-lu07-ee61", {})
    assert manager.clear() == [keychain.KEYCHAIN, f"the age file {manager.age_file.path}"]


@needs_a_keychain
def test_keys_of_several_servers_lie_side_by_side_and_are_cleared_together(session: SecretService) -> None:
    local = SecretsManager(None, "http://127.0.0.1:9")
    local.keep("qx19-vz84-ii52", "keychain")
    SecretsManager().keep(KEY, "keychain")
    assert local.resolve().get_secret_value() == "qx19-vz84-ii52"
    assert local.forget() == [keychain.KEYCHAIN]
    assert SecretsManager().resolve().get_secret_value() == KEY
    local.keep("qx19-vz84-ii52", "keychain")
    assert command("secrets", "clear").returncode == 0
    assert (keychain.read(local.server), keychain.read(ANTHROPIC)) == (None, None)


def test_a_bus_that_says_nothing_is_left_after_two_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bus:  # takes connections and says nothing
        bus.bind(str(tmp_path / "bus"))
        bus.listen()
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
        began = time.monotonic()
        with pytest.raises(keychain.KeychainSilent, match="did not answer within 2 s"):
            keychain.read(ANTHROPIC)
        assert time.monotonic() - began < 10.0


@needs_a_keychain
def test_a_locked_keychain_that_waits_for_a_person_is_left_and_the_age_file_is_used(session: SecretService) -> None:
    manager = SecretsManager()
    manager.age_file.change(lambda _: {ANTHROPIC: "zq81-xk20-vv37"})
    keychain.write(ANTHROPIC, KEY)
    session.stop_answering()
    try:
        began = time.monotonic()
        assert manager.resolve().get_secret_value() == "zq81-xk20-vv37"
        assert 1.9 < time.monotonic() - began < 10.0
        shown = next(place for place in manager.places() if place.name == keychain.KEYCHAIN)
        assert shown.detail == "it did not answer within 2 s; it may be locked"
    finally:
        session.answer_again()
    # The daemon first answers the questions that were left behind; each look waits up to 2 s for it.
    deadline = time.monotonic() + 30
    while manager.resolve().get_secret_value() != KEY:
        assert time.monotonic() < deadline, "it answers again, and is not used again"


def test_without_a_bus_nobody_waits_and_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(keychain.KeychainSilent, match="no D-Bus session"):
        keychain.read(ANTHROPIC)
    assert "DBUS_SESSION_BUS_ADDRESS" not in os.environ
