"""A request that fits into what is left of a budget (BUDGET-1).

The store decides, in the commit that begins the step; nothing is asked before that, so a run far from its limits pays
for no further request. Only what the store refuses is looked at again: the input is counted by the server, if it can
and if the answer could change anything, and the longest answer shrinks to what is left, but not below 1,024 tokens.
What is hashed for the journal is the request as the conversation has it, so a resume finds its answer whatever the
budget was; what the server receives is in the event, as ``request_sha256``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mnemosyne.canonical import sha256_json
from mnemosyne.errors import BudgetExceeded
from mnemosyne.llm import prices

if TYPE_CHECKING:
    from pydantic import JsonValue

    from mnemosyne.llm.client import Client
    from mnemosyne.llm.turns import JsonObject, Turn

__all__ = ["LEAST_OUTPUT", "FittedRequest"]

LEAST_OUTPUT = 1024
"""Tokens: an answer shorter than that is seldom one, and would be paid for all the same."""


class FittedRequest:
    """One request as it is sent: the same as the conversation has it, or with a shorter longest answer.

    Attributes:
        body: What is sent.
    """

    def __init__(self, client: Client, body: JsonObject) -> None:
        self.body = body
        self._client = client
        self._asked = _max_tokens(body)
        self._prompt: int | None = None
        """Tokens, counted by the server."""
        self._looked = False
        self._refusal: BudgetExceeded | None = None
        """Why the answer is shorter than asked for."""

    @property
    def detail(self) -> dict[str, JsonValue]:
        """For the event of its step."""
        return {"request_sha256": sha256_json(self.body)}

    @property
    def reservation(self) -> dict[str, JsonValue]:
        """The most that sending it can spend."""
        return prices.reservation(self.body, self._prompt)

    async def fit(self, refused: BudgetExceeded) -> None:
        """Make it smaller, so that it fits into what the refusal says is left.

        Raises:
            BudgetExceeded: ``refused`` itself: no answer of 1,024 tokens fits.
        """
        left = _left(refused)
        if left is None:
            raise refused
        least = min(LEAST_OUTPUT, self._asked)
        was = _max_tokens(self.body)
        if not self._looked and prices.longest_answer(self.body, prices.fewest_prompt_tokens(self.body), left) >= least:
            self._looked = True
            self._prompt = await self._client.count_tokens(self.body)
            was = self._asked + 1 if self._prompt is not None else was
        prompt = self._prompt or prices.prompt_tokens(self.body)
        fits = min(self._asked, prices.longest_answer(self.body, prompt, left))
        if fits < least or fits >= was:
            raise refused
        self.body = {**self.body, "max_tokens": fits}
        self._refusal = refused if fits < self._asked else None

    def check(self, turn: Turn) -> None:
        """Refuse an answer that the budget has cut.

        Raises:
            BudgetExceeded: It hit a limit that was lower than asked for. As the end of a failed step it has its usage,
                and a resume with a larger budget asks again.
        """
        if turn.stop_reason == "max_tokens" and self._refusal is not None:
            why = self._refusal
            raise BudgetExceeded(
                why.message,
                code=why.code,
                reason=f"only {_max_tokens(self.body)} tokens were left for an answer, and it needed more",
                hint=why.hint,
                data={name: value for name, value in why.data.items() if name != "left"},
                usage=turn.usage,
            )


def _left(refused: BudgetExceeded) -> prices.Left | None:
    """What would fit; None where a smaller request would be refused as well."""
    said = refused.data.get("left")
    if refused.data.get("kind") not in ("tokens", "usd") or not isinstance(said, dict):
        return None
    tokens, usd = said.get("tokens"), said.get("usd")
    return prices.Left(
        tokens if isinstance(tokens, int) else None, float(usd) if isinstance(usd, int | float) else None
    )


def _max_tokens(body: JsonObject) -> int:
    value = body["max_tokens"]
    assert isinstance(value, int)
    return value
