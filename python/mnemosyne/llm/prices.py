"""What a model costs, from a data file with a date: prices and model names change without a change of code.

A model that the file does not know has no price: its reservations carry no money (so a limit in dollars cannot hold
it, only one in tokens can), and its usage counts as 0 dollars.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import JsonValue

from mnemosyne.canonical import canonical_json
from mnemosyne.models import Usage

__all__ = ["context_window", "cost_usd", "default_model", "max_tokens", "reservation"]

# With the tokenizer of Claude 4.7 and later English is about 3, code and JSON are somewhat less; too few bytes reserve
# too much, which is the safe side.
_BYTES_PER_TOKEN = 2
_PER_TOKEN = 1e-6  # the file has dollars per million tokens


@dataclass(frozen=True)
class _Price:
    """Dollars per million tokens, for prompts of up to ``up_to`` tokens (None: any)."""

    up_to: int | None
    input: float
    output: float
    cache_write: float
    cache_read: float


@dataclass(frozen=True)
class _Catalogue:
    roles: dict[str, str]
    max_tokens: dict[str, int]
    default_max_tokens: int
    claude_max_tokens: int
    """For a Claude model that the file does not name: it thinks, and its thinking counts."""
    windows: dict[str, int]
    prices: dict[str, list[_Price]]


@cache
def _catalogue() -> _Catalogue:
    data = json.loads(Path(__file__).with_name("models.json").read_text("utf-8"))
    models = data["models"]
    return _Catalogue(
        roles=data["roles"],
        max_tokens={name: model["max_tokens"] for name, model in models.items()},
        default_max_tokens=data["max_tokens"],
        claude_max_tokens=data["claude_max_tokens"],
        windows={name: model["window"] for name, model in models.items() if "window" in model},
        prices={
            name: [_Price(**{"up_to": None, **tier}) for tier in model["prices"]] for name, model in models.items()
        },
    )


def default_model(role: str) -> str:
    """Return the model a role uses when none is configured."""
    roles = _catalogue().roles
    return roles.get(role, roles["executor"])


def max_tokens(model: str) -> int:
    """Return the longest answer, in tokens and with its thinking, that we ask ``model`` for."""
    catalogue = _catalogue()
    default = catalogue.claude_max_tokens if model.startswith("claude-") else catalogue.default_max_tokens
    return catalogue.max_tokens.get(model, default)


def context_window(model: str) -> int | None:
    """Return how many tokens a conversation with ``model`` may have, its answer included; None: not known."""
    return _catalogue().windows.get(model)


def cost_usd(model: str, usage: Usage) -> float:
    """Return the list price of ``usage`` in dollars; 0 where no price is known."""
    prompt = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
    price = _price(model, prompt)
    if price is None:
        return 0.0
    return _PER_TOKEN * (
        usage.input_tokens * price.input
        + usage.output_tokens * price.output
        + usage.cache_write_tokens * price.cache_write
        + usage.cache_read_tokens * price.cache_read
    )


def reservation(body: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return ``{"tokens", "usd"}``: the most that sending ``body`` can plausibly spend (BUDGET-1)."""
    model, longest = str(body["model"]), body["max_tokens"]
    assert isinstance(longest, int)
    prompt = len(canonical_json(body)) // _BYTES_PER_TOKEN + 1
    price = _price(model, prompt)
    if price is None:
        return {"tokens": prompt + longest, "usd": None}
    usd = _PER_TOKEN * (prompt * max(price.input, price.cache_write) + longest * price.output)
    return {"tokens": prompt + longest, "usd": round(usd, 6)}


def _price(model: str, prompt_tokens: int) -> _Price | None:
    for price in _catalogue().prices.get(model, []):
        if price.up_to is None or prompt_tokens <= price.up_to:
            return price
    return None
