"""The key of the model's API: found here once, kept in a ``SecretStr``, never printed (SECRET-1).

Order: the file that a flag names, the key that an embedding program gave (:func:`provide`), ``ANTHROPIC_API_KEY``,
``ANTHROPIC_AUTH_TOKEN``. The first that is there wins and nothing else is looked at: a flag that names a bad file is an
error, not a reason to try the environment, because the user would then pay with a key they did not choose.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pydantic import SecretStr

from mnemosyne.errors import EnvironmentProblem, InvalidInput, MissingCredential
from mnemosyne.redaction import hide_secret

__all__ = ["NO_KEY", "key_source", "provide", "resolve_api_key"]

NO_KEY = "mnemosyne-no-key"
"""Sent to a server that the user named without a key: servers on one's own machine want a header, any header."""

_LARGEST_KEY_FILE = 16_384  # bytes; no key is larger, and a mistyped path must not be read into memory

_VARIABLES = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")

_provided: SecretStr | None = None


def provide(key: str) -> None:
    """Keep the key of a program that embeds us (``Config::api_key`` in Rust), which never goes through the environment.

    Raises:
        InvalidInput: It is no key (MN-0151).
    """
    global _provided
    key = key.strip()
    if not _is_key(key):
        raise InvalidInput(
            "the API key given by the embedding program cannot be used",
            code="MN-0151",
            reason="it is empty, or holds something else than printable ASCII without spaces",
            hint="give the key, and nothing else, as api_key in the Config",
        )
    _provided = _kept(key)


def resolve_api_key(file: Path | None, base_url: str | None, model: str | None) -> SecretStr:
    """Return the key to use.

    Args:
        file: The file of ``--api-key-file``; its mode must keep everybody else out (0600 or stricter).
        base_url: The server the user named, or None for Anthropic's.
        model: The model the user named; ``demo`` is our own offline server, which is never sent a real key.

    Raises:
        InvalidInput: The file is missing, is no regular file, or holds no key (MN-0151).
        EnvironmentProblem: Others could read the file (MN-0251).
        MissingCredential: No key was found and Anthropic's server would ask for one (MN-0201).
    """
    if file is not None:
        return _kept(_read(file))
    if model == "demo":
        return SecretStr(NO_KEY)
    if _provided is not None:
        return _provided
    for variable in _VARIABLES:
        value = os.environ.get(variable, "").strip()
        if value:
            return _kept(value)
    if base_url is not None:
        return SecretStr(NO_KEY)
    raise MissingCredential(
        "no API key was found",
        code="MN-0201",
        reason="neither --api-key-file, ANTHROPIC_API_KEY nor ANTHROPIC_AUTH_TOKEN is given",
        hint="set ANTHROPIC_API_KEY, or name a Messages-compatible server with --base-url, "
        "or try the offline model: mnemosyne demo",
    )


def _kept(key: str) -> SecretStr:
    hide_secret(key)
    return SecretStr(key)


def key_source() -> str | None:
    """Return where :func:`resolve_api_key` would take the key from when no file is named; None where there is none.

    The name of the place only: what lies there is not read into anything that is shown (SECRET-1).
    """
    if _provided is not None:
        return "the embedding program"
    return next((variable for variable in _VARIABLES if os.environ.get(variable, "").strip()), None)


def _read(file: Path) -> str:
    file = file.expanduser()
    try:
        # Opened once and judged by descriptor: between a check of the path and its opening the file could be swapped.
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _bad_file(file, error.strerror or "it cannot be opened") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _bad_file(file, "it is not a regular file")
        if status.st_mode & 0o077:
            raise EnvironmentProblem(
                f"the key file {file} can be read by others",
                code="MN-0251",
                reason=f"its mode is {stat.S_IMODE(status.st_mode):04o}",
                hint=f"chmod 600 {file}",
            )
        content = os.read(descriptor, _LARGEST_KEY_FILE + 1)
    finally:
        os.close(descriptor)
    key = content.decode("ascii", "replace").strip()
    if len(content) > _LARGEST_KEY_FILE or not _is_key(key):
        raise _bad_file(file, "it does not hold exactly one key")
    return key


def _is_key(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _bad_file(file: Path, reason: str) -> InvalidInput:
    return InvalidInput(
        f"the key file {file} cannot be used",
        code="MN-0151",
        reason=reason,
        hint="put the key, and nothing else, into a file of your own with mode 600",
    )
