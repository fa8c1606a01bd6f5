"""The key of the model's API: one door, through which it is found, kept, replaced and forgotten (SECRET-1).

Order: the file that a flag names, the key that an embedding program gave (``provide``), ``ANTHROPIC_API_KEY``,
``ANTHROPIC_AUTH_TOKEN``, the OS keychain, the age file, a profile of the SDK. The first that is there wins and nothing
else is looked at: a flag that names a bad file is an error, not a reason to try the environment, because the user would
then pay with a key they did not choose.

What is kept is kept for one server, so that the key of Anthropic's is never sent to another one that a flag names. A
key is a ``SecretStr`` that knows its source; what is told to people is the source.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import SecretStr

from mnemosyne.config import keychain
from mnemosyne.config.agefile import AgeFile, read_private
from mnemosyne.config.keychain import KEYCHAIN, KeychainSilent
from mnemosyne.config.settings import ANTHROPIC, config_directory
from mnemosyne.errors import EnvironmentProblem, InvalidInput, MissingCredential, MnemosyneError
from mnemosyne.redaction import NO_KEY, hide_secret

if TYPE_CHECKING:
    from pydantic import JsonValue

__all__ = ["NO_KEY", "ApiKey", "Place", "SecretsManager", "is_key", "key_in", "key_source", "provide"]

LARGEST_KEY = 16_384
"""Bytes of a key file; no key is larger."""

_VARIABLES = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")

_provided: ApiKey | None = None
_in_use: str | None = None


class ApiKey(SecretStr):
    """A key, and where it came from.

    Attributes:
        source: For people; never anything of the key. Empty for ``NO_KEY``.
        profile: The profile of the SDK that stands in its place; the key itself is then empty.
    """

    def __init__(self, value: str, source: str, *, profile: str | None = None) -> None:
        super().__init__(value)
        self.source = source
        self.profile = profile


@dataclass(frozen=True)
class Place:
    """One place where a key may be.

    Attributes:
        name: For people.
        holds: Whether a key for the server is there.
        detail: What else is to be said of it.
    """

    name: str
    holds: bool
    detail: str = ""


class SecretsManager:
    """The key of one server: where it is, and how it gets there.

    Args:
        file: The file of ``--api-key-file``; its mode must keep everybody else out (0600 or stricter).
        base_url: The server the user named; None is ``ANTHROPIC_BASE_URL``, else Anthropic's.
        model: The model the user named; ``demo`` is our own offline server, which is never sent a real key.
    """

    def __init__(self, file: Path | None = None, base_url: str | None = None, model: str | None = None) -> None:
        self._file, self._is_demo = file, model == "demo"
        named = base_url or os.environ.get("ANTHROPIC_BASE_URL") or None
        self._is_named = named is not None
        self.server = (named or ANTHROPIC).rstrip("/")
        self.age_file = AgeFile(config_directory())

    def resolve(self) -> ApiKey:
        """Return the key to use. May wait for the keychain, for 2 s at most: not to be called on an event loop.

        Raises:
            InvalidInput: The file is missing, is no regular file, or holds no key (MN-0151).
            EnvironmentProblem: Others could read a file with a key (MN-0251), or the age file is damaged (MN-0640).
            MissingCredential: No key was found and Anthropic's server would ask for one (MN-0201).
        """
        global _in_use
        if self._file is None and self._is_demo:
            return ApiKey(NO_KEY, "")
        found = next(self._keys(), None)
        if found is not None:
            _in_use = found.source
            return found
        if self._is_named:
            return ApiKey(NO_KEY, "")
        raise MissingCredential(
            "no API key was found",
            code="MN-0201",
            reason="neither --api-key-file, ANTHROPIC_API_KEY nor ANTHROPIC_AUTH_TOKEN is given, and no key is kept",
            hint="set ANTHROPIC_API_KEY, or keep a key: mnemosyne secrets init; or name a Messages-compatible server "
            "with --base-url, or try the offline model: mnemosyne demo",
        )

    def places(self) -> list[Place]:
        """Return every place in its order, with what is there; what cannot be read says so and ends nothing."""
        places = []
        if self._file is not None:
            places.append(_place(f"--api-key-file {self._file}", self._from_file))
        if _provided is not None:
            places.append(Place(_provided.source, True))
        places += [Place(name, bool(_variable(name))) for name in _VARIABLES]
        places.append(_place(KEYCHAIN, self._from_keychain))
        places.append(_place(self._file_name, self._from_age_file))
        name = _active_profile()
        places.append(_place(f"the SDK profile {name}", lambda: _profile(name, self.server)))
        return places

    def keep(self, key: str, to: Literal["keychain", "file"] | None = None) -> str:
        """Keep a key for the server, in the place of the one that was kept; returns the name of the place.

        Args:
            key: The key.
            to: Where to; None is the age file if it is there, else the keychain if it answers, else the age file.

        Raises:
            InvalidInput: It is no key (MN-0151).
            EnvironmentProblem: The keychain was asked for and does not answer (MN-0642); a file cannot be read or
                written (MN-0251, MN-0640, MN-0641).
        """
        kept = _kept(_checked(key, "the key given", "give the key, and nothing else"), "")
        if self.choose(to) == KEYCHAIN:
            try:
                keychain.write(self.server, kept.get_secret_value())
            except KeychainSilent as error:
                raise _no_keychain(error) from None
            self._remove_from_file()
            return KEYCHAIN
        self.age_file.change(lambda keys: {**keys, self.server: kept.get_secret_value()})
        self._remove_from_keychain()  # which is asked first: an old key there would win over the new one
        return self._file_name

    def choose(self, to: Literal["keychain", "file"] | None = None) -> str:
        """Return the name of the place where ``keep`` would keep a key, and make it ready.

        Raises:
            EnvironmentProblem: The keychain was asked for and does not answer (MN-0642); the age file cannot be made.
        """
        if to == "keychain" or (to is None and not self.age_file.exists):
            try:
                keychain.read(self.server)
                return KEYCHAIN
            except KeychainSilent as error:
                if to == "keychain":
                    raise _no_keychain(error) from None
        self.age_file.prepare()
        return self._file_name

    def forget(self) -> list[str]:
        """Forget the key that is kept for the server; returns the names of the places that held one."""
        found = [KEYCHAIN] if self._remove_from_keychain() else []
        return [*found, self._file_name] if self._remove_from_file() else found

    def rotate(self) -> bool:
        """Encrypt the age file anew, so that the old identity opens nothing any more; False where there is none."""
        if not self.age_file.exists:
            return False
        self.age_file.rotate()
        return True

    def clear(self) -> list[str]:
        """Forget all keys of all servers, and how they were encrypted; returns the names of the places."""
        found = [KEYCHAIN] if self._remove_from_keychain(all_servers=True) else []
        return [*found, self._file_name] if self.age_file.remove() else found

    @property
    def _file_name(self) -> str:
        return f"the age file {self.age_file.path}"

    def _keys(self) -> Iterator[ApiKey]:
        """The keys that are there, best first; what comes later is looked at only if it is asked for."""
        if self._file is not None:
            yield self._from_file()
        if _provided is not None:
            yield _provided
        for name in _VARIABLES:
            if value := _variable(name):
                yield _kept(value, name)
        try:
            if (found := self._from_keychain()) is not None:
                yield found
        except KeychainSilent:
            pass  # as if there were none; `mnemosyne secrets status` says what it is
        if (found := self._from_age_file()) is not None:
            yield found
        if (found := _profile(_active_profile(), self.server)) is not None:
            yield found

    def _from_file(self) -> ApiKey:
        assert self._file is not None
        file = self._file.expanduser()

        def refuse(reason: str) -> MnemosyneError:
            return _no_key(f"the key file {file}", reason, "put the key, and nothing else, into a file with mode 600")

        key = read_private(file, LARGEST_KEY, refuse).decode("ascii", "replace").strip()
        if not is_key(key):
            raise refuse("it does not hold exactly one key")
        return _kept(key, f"--api-key-file {self._file}")

    def _from_keychain(self) -> ApiKey | None:
        key = keychain.read(self.server)
        return _kept(key, KEYCHAIN) if key else None

    def _from_age_file(self) -> ApiKey | None:
        key = self.age_file.read().get(self.server)
        return _kept(key, self._file_name) if key else None

    def _remove_from_file(self) -> bool:
        if self.server not in self.age_file.read():
            return False
        self.age_file.change(lambda keys: {server: key for server, key in keys.items() if server != self.server})
        return True

    def _remove_from_keychain(self, *, all_servers: bool = False) -> bool:
        try:
            return keychain.remove(None if all_servers else self.server)
        except KeychainSilent:
            return False


def provide(key: str) -> None:
    """Keep the key of a program that embeds us (``Config::api_key`` in Rust), which never goes through the environment.

    Raises:
        InvalidInput: It is no key (MN-0151).
    """
    global _provided
    what = "the API key given by the embedding program"
    hint = "give the key, and nothing else, as api_key in the Config"
    _provided = _kept(_checked(key, what, hint), "the embedding program")


def key_in(config: Mapping[str, object], source: str = "the agent's configuration") -> ApiKey | None:
    """Return the key that an agent is configured with, hidden from every text from now on; None where it has none.

    Args:
        config: ``api_key`` or ``profile``, and ``key_source``: where the orchestra had it from.
        source: What is said of a key that comes without.
    """
    global _in_use
    value, profile, named = config.get("api_key"), config.get("profile"), config.get("key_source")
    key = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not (isinstance(key, str) and key) and not isinstance(profile, str):
        return None
    hide_secret(key if isinstance(key, str) else "")
    found = ApiKey(
        key if isinstance(key, str) else "",
        named if isinstance(named, str) else source,
        profile=profile if isinstance(profile, str) else None,
    )
    _in_use = found.source
    return found


def key_source() -> str | None:
    """Return where the key that this process uses came from; None where it has none. Never waits, for error boxes."""
    if _in_use is not None:
        return _in_use
    if _provided is not None:
        return _provided.source
    return next((name for name in _VARIABLES if _variable(name)), None)


def is_key(text: str) -> bool:
    """Whether a text can be a key: printable ASCII without spaces."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip()


def _kept(key: str, source: str) -> ApiKey:
    hide_secret(key)
    return ApiKey(key, source)


def _checked(key: str, what: str, hint: str) -> str:
    if not is_key(key.strip()):
        raise _no_key(what, "it is empty, or holds something else than printable ASCII without spaces", hint)
    return key.strip()


def _no_key(what: str, reason: str, hint: str) -> InvalidInput:
    return InvalidInput(f"{what} cannot be used", code="MN-0151", reason=reason, hint=hint)


def _no_keychain(error: KeychainSilent) -> EnvironmentProblem:
    return EnvironmentProblem(
        "the OS keychain does not answer",
        code="MN-0642",
        reason=str(error),
        hint="unlock it, or keep the key in an age file: mnemosyne secrets init --to file",
    )


def _place(name: str, look: Callable[[], ApiKey | None]) -> Place:
    try:
        return Place(name, look() is not None)
    except KeychainSilent as error:
        return Place(name, False, str(error))
    except MnemosyneError as problem:
        return Place(name, False, f"{problem.message}: {problem.reason}" if problem.reason else problem.message)


# -- profiles of the SDK -----------------------------------------------------------------------------------------------
# Files that its tools for signing in write. The SDK renews what they hold, so it gets the name and not the token.


def _active_profile() -> str:
    named = os.environ.get("ANTHROPIC_PROFILE", "") or _text(_profiles() / "active_config").strip() or "default"
    return "" if named.startswith(".") or "/" in named or "\0" in named else named


def _profile(name: str, server: str) -> ApiKey | None:
    """Return what stands for a profile, if it is there and for this server."""
    about = _json(_profiles() / "configs" / f"{name}.json") if name else None
    if about is None or str(about.get("base_url") or ANTHROPIC).rstrip("/") != server:
        return None
    for token in (_json(_profiles() / "credentials" / f"{name}.json") or {}).values():
        if isinstance(token, str):
            hide_secret(token)
    return ApiKey("", f"the SDK profile {name}", profile=name)


def _profiles() -> Path:
    named = os.environ.get("ANTHROPIC_CONFIG_DIR")
    return Path(named) if named else Path.home() / ".config" / "anthropic"


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError):
        return ""


def _json(path: Path) -> dict[str, JsonValue] | None:
    try:
        found = json.loads(_text(path))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
