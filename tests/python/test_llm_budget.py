"""A request that fits into what is left (BUDGET-1): what the server sees, and what a resume finds."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest
from journal_in_memory import MemoryJournal
from messages_server import MessagesServer, Reply, failing, saying
from mnemosyne.agents.context import AgentContext
from mnemosyne.errors import BudgetExceeded, InvalidInput
from mnemosyne.llm import ClaudeSession, Client, ResultMessage, SessionOptions, prices
from mnemosyne.llm.budget import LEAST_OUTPUT
from mnemosyne.llm.prices import Left
from mnemosyne.models import Budget, Limits, Phase, WorkItem
from pydantic import JsonValue

MODEL = "claude-sonnet-5-5"


class Limited(MemoryJournal):
    """A journal whose store has only so much left."""

    def __init__(self, *, tokens: int | None = None, usd: float | None = None) -> None:
        super().__init__()
        self.tokens, self.usd = tokens, usd
        self.on_call = self._check

    def _check(self, request: dict[str, Any]) -> None:
        reserve = request.get("reserve") if request["op"] == "step_start" else None
        if reserve is None:
            return
        left: dict[str, JsonValue] = {"tokens": self.tokens, "usd": self.usd}
        for kind, most in (("tokens", self.tokens), ("usd", self.usd)):
            if most is not None and reserve[kind] > most:
                said: dict[str, JsonValue] = {"kind": kind, "level": "run", "name": "", "left": left}
                raise BudgetExceeded("the budget is used up", hint="mnemosyne resume", data=said)


class Counting:
    """Answers ``count_tokens`` with a number or an error, and everything else with text."""

    def __init__(self, counted: int | None, answer: Reply | None = None) -> None:
        self.counted = counted
        self.answer = answer or saying("done")

    def __call__(self, body: dict[str, Any]) -> Reply:
        if "max_tokens" in body:
            return self.answer
        if self.counted is None:
            return failing(404, "not_found_error")
        return Reply(body=json.dumps({"input_tokens": self.counted}).encode())


async def converse(server: MessagesServer, journal: MemoryJournal, prompt: str = "go", **more: Any) -> ResultMessage:
    item = WorkItem(id="i1", description="test", phase=Phase.PLAN_TO_ARTIFACTS, role="executor")
    context = AgentContext(item, epoch=journal.epoch, upcalls=journal)
    client = Client({"base_url": server.url, "api_key": "key"})
    try:
        async with ClaudeSession(client, context, SessionOptions(MODEL, "You are a test.", **more)) as session:
            await session.query(prompt)
            messages = [message async for message in session.receive_response()]
    finally:
        await client.close()
    last = messages[-1]
    assert isinstance(last, ResultMessage)
    return last


def turns(server: MessagesServer) -> list[dict[str, Any]]:
    return [seen.body for seen in server.seen if seen.path.split("?")[0] == "/v1/messages"]


def counts(server: MessagesServer) -> int:
    return sum(seen.path.split("?")[0].endswith("/count_tokens") for seen in server.seen)


async def test_budget_1_far_from_the_limit_nothing_is_counted_and_nothing_shrinks() -> None:
    journal = Limited(tokens=1_000_000, usd=100.0)
    with MessagesServer(answer=Counting(50)) as server:
        await converse(server, journal)
    assert [body["max_tokens"] for body in turns(server)] == [prices.max_tokens(MODEL)]
    assert counts(server) == 0


async def test_budget_1_the_answer_shrinks_to_what_is_left_beside_the_counted_input() -> None:
    journal = Limited(tokens=2_000)
    with MessagesServer(answer=Counting(50)) as server:
        await converse(server, journal)
    assert [body["max_tokens"] for body in turns(server)] == [1_950]
    assert counts(server) == 1


async def test_budget_1_without_a_count_the_estimate_is_conservative() -> None:
    journal = Limited(tokens=2_000)
    with MessagesServer(answer=Counting(None)) as server:
        await converse(server, journal)
    body = turns(server)[0]
    assert LEAST_OUTPUT <= body["max_tokens"] < 1_950
    assert body["max_tokens"] == 2_000 - prices.prompt_tokens(body)


async def test_budget_1_dollars_shrink_an_answer_at_its_own_price() -> None:
    journal = Limited(usd=0.02)
    with MessagesServer(answer=Counting(1_000)) as server:
        await converse(server, journal)
    # 1,000 tokens written to the cache are 0.0025 dollars; the rest buys 1,750 tokens at 10 dollars a million.
    assert 1_740 <= turns(server)[0]["max_tokens"] <= 1_750


async def test_budget_1_a_server_that_does_not_count_is_asked_once() -> None:
    with MessagesServer(answer=Counting(None)) as server:
        for _ in range(3):
            await converse(server, Limited(tokens=2_000))
    assert (counts(server), len(turns(server))) == (1, 3)


@pytest.mark.parametrize("broken", [Reply(body=b"{}"), Reply(body=b"<html>"), failing(500, "api_error")])
async def test_budget_1_a_count_that_goes_wrong_is_an_estimate(broken: Reply) -> None:
    with MessagesServer(answer=lambda body: saying("done") if "max_tokens" in body else broken) as server:
        await converse(server, Limited(tokens=2_000))
    assert len(turns(server)) == 1


async def test_budget_1_less_than_1024_tokens_beside_the_input_send_nothing() -> None:
    for left in (Limited(tokens=1_073), Limited(usd=0.0103)):
        with MessagesServer(answer=Counting(50)) as server:
            with pytest.raises(BudgetExceeded):
                await converse(server, left)
            assert turns(server) == []
        assert left.states("turn") == []
    fits = Limited(tokens=1_074)
    with MessagesServer(answer=Counting(50)) as server:
        await converse(server, fits)
    assert turns(server)[0]["max_tokens"] == LEAST_OUTPUT


async def test_budget_1_an_input_that_is_worth_far_more_is_not_even_counted() -> None:
    with MessagesServer(answer=Counting(50)) as server:
        with pytest.raises(BudgetExceeded):
            await converse(server, Limited(usd=0.10), "word " * 100_000)
        assert server.seen == []


async def test_budget_1_what_no_shorter_answer_can_help_is_refused_at_once() -> None:
    journal = MemoryJournal()

    def refuse(request: dict[str, Any]) -> None:
        if request.get("reserve"):
            left: dict[str, JsonValue] = {"tokens": None, "usd": None}
            raise BudgetExceeded("no call is left", data={"kind": "calls", "left": left})

    journal.on_call = refuse
    with MessagesServer(answer=Counting(50)) as server:
        with pytest.raises(BudgetExceeded, match="no call is left"):
            await converse(server, journal)
        assert server.seen == []


async def test_budget_1_a_resume_with_another_budget_finds_the_answer_of_a_shrunken_request() -> None:
    journal = Limited(tokens=2_000)
    with MessagesServer(answer=Counting(50)) as server:
        await converse(server, journal)
        journal.next_claim()
        journal.tokens = None
        await converse(server, journal)
        assert len(turns(server)) == 1
        started = [record for record in journal.records if record["kind"] == "turn"]
        assert [record["detail"]["request_sha256"] for record in started] == [
            seen.body_sha256 for seen in server.seen if "max_tokens" in seen.body
        ]


async def test_budget_1_an_answer_that_the_budget_cut_stops_the_run_and_is_asked_again_with_more() -> None:
    journal = Limited(tokens=2_000)
    cut = Counting(50, saying("the beginning of", "max_tokens", output_tokens=1_950))
    with MessagesServer(answer=cut) as server:
        with pytest.raises(BudgetExceeded, match="used up") as refused:
            await converse(server, journal)
        assert "1950 tokens were left for an answer" in refused.value.reason
        failed = [call for call in journal.calls if call["op"] == "step_fail"]
        assert [call["usage"]["output_tokens"] for call in failed] == [1_950], "what it cost is known"
        journal.next_claim()
        journal.tokens = None
        cut.answer = saying("all of it")
        assert (await converse(server, journal)).text == "all of it"
    assert [body["max_tokens"] for body in turns(server)] == [1_950, prices.max_tokens(MODEL)]


async def test_a_limit_that_was_asked_for_is_never_raised() -> None:
    with MessagesServer(answer=Counting(50)) as server:
        await converse(server, Limited(tokens=600), max_tokens=500)
        assert turns(server)[0]["max_tokens"] == 500
        with pytest.raises(BudgetExceeded):
            await converse(server, Limited(tokens=500), max_tokens=500)


def test_budget_1_the_longest_answer_that_fits_is_one_that_can_be_reserved() -> None:
    chance = random.Random(7)
    for number, model in itertools.product(range(200), ("claude-haiku-5-5", "claude-opus-5-5", "demo", "unknown")):
        body: dict[str, JsonValue] = {"model": model, "max_tokens": 1, "messages": ["x" * chance.randrange(300_000)]}
        prompt = prices.prompt_tokens(body) if number % 2 else chance.randrange(1, 150_000)
        left = Left(chance.choice([None, chance.randrange(200_000)]), chance.choice([None, chance.uniform(0, 1)]))
        most = prices.longest_answer(body, prompt, left)
        if most < 1 or most > 10**9:
            continue
        fits, too_long = (prices.reservation({**body, "max_tokens": length}, prompt) for length in (most, most + 5))
        assert within(fits, left)
        assert not within(too_long, left)


def within(reserved: dict[str, JsonValue], left: Left) -> bool:
    tokens, usd = reserved["tokens"], reserved["usd"]
    assert isinstance(tokens, int)
    fits = left.tokens is None or tokens <= left.tokens
    return fits and (left.usd is None or not isinstance(usd, float) or usd <= left.usd)


@pytest.mark.parametrize(
    "budget",
    [Budget(usd=1), Budget(per_task=Limits(usd=1)), Budget(per_agent=Limits(usd=1))],
    ids=["run", "task", "agent"],
)
def test_budget_1_dollars_are_refused_where_a_model_has_no_price(budget: Budget) -> None:
    prices.check_priced(budget, ["claude-opus-5-5", "demo"])
    with pytest.raises(InvalidInput, match="mystery"):
        prices.check_priced(budget, ["claude-opus-5-5", "mystery-1"])
    prices.check_priced(Budget(tokens=1), ["mystery-1"])
    prices.check_priced(None, ["mystery-1"])
