"""What a model costs, from a data file with a date: prices and model names change without a change of code.

A model that the file does not know has no price: its reservations carry no money, so it is not asked where dollars are
limited, and its usage counts as 0 dollars. The demo model has one: 0, so a limit in dollars never stops it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import JsonValue

from mnemosyne.canonical import canonical_json
from mnemosyne.errors import InvalidInput
from mnemosyne.models import Budget, Usage

__all__ = [
    "Left",
    "check_priced",
    "context_window",
    "cost_usd",
    "default_model",
    "fewest_prompt_tokens",
    "has_price",
    "longest_answer",
    "max_tokens",
    "prompt_tokens",
    "reservation",
]

# With the tokenizer of Claude 4.7 and later English is about 3, code and JSON are somewhat less; too few bytes reserve
# too much, which is the safe side.
_BYTES_PER_TOKEN = 2
# The other end: hardly any text has fewer tokens than that. English has about 4 bytes in a token.
_MOST_BYTES_PER_TOKEN = 6
_PER_TOKEN = 1e-6  # the file has dollars per million tokens


@dataclass(frozen=True)
class Left:
    """What a budget still allows; None is no limit."""

    tokens: int | None
    usd: float | None


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


def has_price(model: str) -> bool:
    """Whether what ``model`` costs is known."""
    return model in _catalogue().prices


def check_priced(budget: Budget | None, models: Iterable[str]) -> None:
    """Refuse a limit in dollars that could not be kept.

    Raises:
        InvalidInput: One of the models has no known price (MN-0119).
    """
    limits = [] if budget is None else [budget, budget.per_task, budget.per_agent]
    if all(limit.usd is None for limit in limits):
        return
    for model in models:
        if not has_price(model):
            raise InvalidInput(
                f"no price is known for the model {model!r}",
                code="MN-0119",
                reason="a limit in dollars could not be kept",
                hint="limit the run with --budget-tokens instead of --budget-usd",
            )


def prompt_tokens(body: dict[str, JsonValue]) -> int:
    """Estimate how many tokens the input of ``body`` has, rather too many than too few."""
    return len(canonical_json(body)) // _BYTES_PER_TOKEN + 1


def fewest_prompt_tokens(body: dict[str, JsonValue]) -> int:
    """Estimate it the other way round: the server will hardly count fewer."""
    return len(canonical_json(body)) // _MOST_BYTES_PER_TOKEN


def reservation(body: dict[str, JsonValue], prompt: int | None = None) -> dict[str, JsonValue]:
    """Return ``{"tokens", "usd"}``: the most that sending ``body`` can plausibly spend (BUDGET-1).

    Args:
        body: The request.
        prompt: Tokens of its input, where they were counted; None: they are estimated.
    """
    model, longest = str(body["model"]), body["max_tokens"]
    assert isinstance(longest, int)
    prompt = prompt or prompt_tokens(body)
    price = _price(model, prompt)
    if price is None:
        return {"tokens": prompt + longest, "usd": None}
    usd = _PER_TOKEN * (prompt * _dearest_input(price) + longest * price.output)
    return {"tokens": prompt + longest, "usd": round(usd, 6)}


def longest_answer(body: dict[str, JsonValue], prompt: int, left: Left) -> int:
    """Return how many tokens the answer may have at most to fit with its input; below 1 if the input does not.

    Args:
        body: The request; its ``max_tokens`` does not matter.
        prompt: Tokens of its input.
        left: What the budget still allows.
    """
    fits: list[float] = [sys.maxsize]
    if left.tokens is not None:
        fits.append(left.tokens - prompt)
    price = _price(str(body["model"]), prompt)
    if left.usd is not None and price is not None and price.output:
        # A millionth less: a reservation is rounded to that.
        money = left.usd - _PER_TOKEN * prompt * _dearest_input(price) - _PER_TOKEN
        fits.append(money / (_PER_TOKEN * price.output))
    return math.floor(min(fits))


def _dearest_input(price: _Price) -> float:
    return max(price.input, price.cache_write)


def _price(model: str, prompt_tokens: int) -> _Price | None:
    for price in _catalogue().prices.get(model, []):
        if price.up_to is None or prompt_tokens <= price.up_to:
            return price
    return None
