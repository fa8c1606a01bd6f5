"""SECRET-1 at the last moment before a text is shown: by value where a secret is known, by shape where it is not."""

from __future__ import annotations

import pytest
from mnemosyne.redaction import HIDDEN, hide_secret, redact

KEY = "canary-0a1b2c3d4e5f60718293"


@pytest.mark.parametrize(
    "text",
    [
        f"the key {KEY} was refused",
        f"{KEY[:8]}...",
        f"x{KEY[5:13]}y",
        f"{KEY}{KEY}",
        f"https://host/?key={KEY}&x=1",
        f"\u2028{KEY}\n{KEY[10:]}",
    ],
)
def test_secret_1_a_known_secret_and_every_piece_of_it_is_hidden(text: str) -> None:
    hide_secret(KEY)
    shown = redact(text)
    assert HIDDEN in shown
    assert not [at for at in range(len(KEY) - 7) if KEY[at : at + 8] in shown]


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("key sk-ant-api03-AbCdEf_0123-xyz refused", "AbCdEf"),
        ("it starts with sk-ant-api03", "api03"),
        ("Authorization: Bearer abc.def-123", "abc.def-123"),
        ('{"x-api-key": "0123456789"}', "0123456789"),
        ("ANTHROPIC_API_KEY=hunter2222", "hunter2222"),
        ("https://me:pass@host/path", "pass"),
        ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", "eyJhbGci"),
        ("AGE-SECRET-KEY-1QQQQQQQQQQQQQ", "QQQQ"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----", "MIIE"),
        ("ghp_0123456789abcdefABCDEF", "0123456789"),
    ],
)
def test_secret_1_what_looks_like_a_secret_is_hidden_though_nobody_named_it(text: str, secret: str) -> None:
    shown = redact(text)
    assert HIDDEN in shown
    assert secret not in shown


@pytest.mark.parametrize(
    "text",
    [
        "work item r-7f3a.9 was claimed by executor-1 (generation 2, epoch 3)",
        "no API key was found",
        "why: neither --api-key-file, ANTHROPIC_API_KEY nor ANTHROPIC_AUTH_TOKEN is given",
        "61,047 tokens in, 0 from cache, 4,052 out",
        "sha256 d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35",
        "http://127.0.0.1:8080/v1/messages answered 529",
    ],
)
def test_ordinary_words_stay_as_they_are(text: str) -> None:
    assert redact(text) == text


def test_what_is_shorter_than_eight_characters_is_not_looked_for() -> None:
    hide_secret("abc")
    assert redact("abcdef") == "abcdef"


def test_a_long_text_is_read_once_and_not_again_from_every_place() -> None:
    hide_secret(KEY)
    # A pattern that looks back would need hours for this.
    assert redact("https://" + "a:" * 500_000 + "api_key " * 200_000).startswith("https://a:")
