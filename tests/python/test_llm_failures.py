"""Every class of failure has a budget of its own, ends as the table of ``llm/failures.py`` says, and says so."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from journal_in_memory import MemoryJournal
from messages_server import MessagesServer, Reply, failing, saying
from mnemosyne import metrics
from mnemosyne.agents import context as context_module
from mnemosyne.agents.context import AgentContext
from mnemosyne.canonical import sha256_json
from mnemosyne.errors import ModelError, ModelParked
from mnemosyne.llm import Client, RetryPolicy, Turn, prices
from mnemosyne.llm import client as client_module
from mnemosyne.llm import governor as governor_module
from mnemosyne.llm.failures import RULES, Failure, UsedUp
from mnemosyne.llm.governor import Governors
from mnemosyne.llm.reset import seconds_until_reset
from mnemosyne.llm.retry import ask
from mnemosyne.models import Phase, WorkItem
from pydantic import JsonValue
from virtual_time import VirtualTime

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
HALF = (saying("half").events or [])[:4]


def body(**more: JsonValue) -> dict[str, JsonValue]:
    messages: list[JsonValue] = [{"role": "user", "content": "hello"}]
    return {"model": "demo", "max_tokens": 100, "stream": True, "messages": messages, **more}


def context_on(journal: MemoryJournal) -> AgentContext:
    item = WorkItem(id="i1", description="test", phase=Phase.PLAN_TO_ARTIFACTS, role="executor")
    return AgentContext(item, epoch=journal.epoch, upcalls=journal)


@dataclass
class Asked:
    """One client on one server, in time of its own."""

    client: Client
    time: VirtualTime = field(default_factory=VirtualTime)
    journal: MemoryJournal = field(default_factory=MemoryJournal)

    def __post_init__(self) -> None:
        governors = Governors(self.time, random.Random(7))
        self.policy = RetryPolicy(self.time, random.Random(7), governors)

    async def answer(self, journal: MemoryJournal | None = None) -> Turn:
        journal = journal or self.journal
        return (await self.time.run(ask(self.client, context_on(journal), body(), self.policy)))[0]

    @property
    def said(self) -> list[dict[str, Any]]:
        """What the events of the failed tries say."""
        return [record["failure"] for record in self.journal.records if record["state"] == "failed"]


@asynccontextmanager
async def asking(server: MessagesServer) -> AsyncIterator[Asked]:
    client = Client({"base_url": server.url, "api_key": "sk-ant-test-0123456789abcdef"})
    try:
        yield Asked(client)
    finally:
        await client.close()


async def given_up(*script: Reply, tries: int) -> ModelError:
    """The error that ends a turn which was sent so often."""
    with MessagesServer(*script) as server:
        async with asking(server) as asked:
            with pytest.raises(ModelError) as raised:
                await asked.answer()
    assert len(server.seen) == tries
    assert asked.journal.states("turn") == ["failed"] * tries
    assert [said["class"] for said in asked.said] == [raised.value.failure] * tries
    assert [said["try"] for said in asked.said] == list(range(1, tries + 1))
    return raised.value


def test_the_table_has_a_rule_for_each_class() -> None:
    assert set(RULES) == set(Failure)


async def test_an_overloaded_server_is_asked_again_each_time_as_a_step_of_its_own() -> None:
    busy = [failing(529, "overloaded_error"), failing(429, "rate_limit_error"), failing(500, "api_error")]
    with MessagesServer(*busy, saying("at last")) as server:
        async with asking(server) as asked:
            assert (await asked.answer()).text == "at last"
    assert asked.journal.states("turn") == ["failed", "failed", "failed", "finished"]
    assert [said["class"] for said in asked.said] == ["overloaded"] * 3
    assert [round(wait, 3) for wait in asked.time.slept[:3]] == [said["wait_seconds"] for said in asked.said]
    reserved = [call["reserve"] for call in asked.journal.calls if call["op"] == "step_start"]
    assert reserved == [prices.reservation(body())] * 4
    assert {record["detail"]["request_sha256"] for record in asked.journal.records} == {sha256_json(body())}


async def test_an_overload_that_lasts_is_tried_for_15_minutes_and_then_parked_not_failed() -> None:
    with MessagesServer(answer=lambda _: failing(529, "overloaded_error", "busy")) as server:
        async with asking(server) as asked:
            with pytest.raises(ModelParked) as raised:
                await asked.answer()
    assert (raised.value.code, raised.value.failure) == ("MN-0410", "overloaded")
    assert 300 <= raised.value.seconds <= 360
    assert 840 <= asked.time.now() <= 900
    assert max(asked.time.slept) <= 60
    assert "busy" in raised.value.reason
    assert 10 <= len(server.seen) <= 60


async def test_a_request_that_alone_is_refused_is_parked_though_the_breaker_stays_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(governor_module, "OVERLOADS_TO_OPEN", 1_000_000)  # others are answered in between
    with MessagesServer(answer=lambda _: failing(500, "api_error")) as server:
        async with asking(server) as asked:
            with pytest.raises(ModelParked):
                await asked.answer()
    assert 840 <= asked.time.now() <= 900
    assert asked.journal.breaker == []


@pytest.mark.parametrize("seconds", [120.0, 5.0])
async def test_work_is_parked_before_its_time_limit_makes_the_overload_an_error_of_its_agent(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = {"timeout_seconds": seconds}
    item = WorkItem(id="i1", description="test", phase=Phase.PLAN_TO_ARTIFACTS, role="executor", **limit)
    with MessagesServer(answer=lambda _: failing(529, "overloaded_error")) as server:
        async with asking(server) as asked:
            monkeypatch.setattr(context_module, "time", SimpleNamespace(monotonic=asked.time.now))
            context = AgentContext(item, epoch=1, upcalls=asked.journal)
            with pytest.raises(ModelParked):
                await asked.time.run(ask(asked.client, context, body(), asked.policy))
    assert 0.1 * seconds <= asked.time.now() <= 0.9 * seconds


async def test_direct_work_that_nobody_can_park_is_told_so_within_half_a_minute() -> None:
    with MessagesServer(answer=lambda _: failing(529, "overloaded_error")) as server:
        async with asking(server) as asked:
            item = WorkItem(id="i1", description="test", phase=Phase.PLAN_TO_ARTIFACTS, role="executor")
            with pytest.raises(ModelParked):
                await asked.time.run(ask(asked.client, AgentContext(item), body(), asked.policy))
    assert 10 <= asked.time.now() <= 30


async def test_an_error_event_in_the_stream_is_an_overload_too() -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
    with MessagesServer(answer=lambda _: Reply(events=[*HALF[:1], error])) as server:
        async with asking(server) as asked:
            with pytest.raises(ModelParked) as raised:
                await asked.answer()
    assert raised.value.failure == "overloaded"


@pytest.mark.parametrize(("header", "value", "seconds"), [("retry_after", "7", 7.0), ("retry_after_ms", "250", 0.25)])
async def test_a_short_time_that_the_server_names_is_waited_exactly(header: str, value: str, seconds: float) -> None:
    with MessagesServer(failing(429, "rate_limit_error", **{header: value}), saying("ok")) as server:
        async with asking(server) as asked:
            await asked.answer()
    assert asked.time.slept == [seconds]
    assert asked.said == [{"class": "wait_until", "try": 1, "wait_seconds": seconds}]


@pytest.mark.parametrize(("named", "seconds"), [("31", 31.0), ("3600", 3600.0), ("86400", 3600.0)])
async def test_a_long_time_that_the_server_names_parks_at_once_and_is_capped(named: str, seconds: float) -> None:
    with MessagesServer(failing(429, "rate_limit_error", retry_after=named), saying("never")) as server:
        async with asking(server) as asked:
            with pytest.raises(ModelParked) as raised:
                await asked.answer()
    assert (raised.value.seconds, raised.value.code, raised.value.failure) == (seconds, "MN-0411", "wait_until")
    assert (asked.time.slept, len(server.seen)) == ([], 1)


async def test_a_time_that_the_server_names_is_honoured_by_every_agent_of_the_process() -> None:
    with MessagesServer(failing(429, "rate_limit_error", retry_after="3600"), saying("later")) as server:
        async with asking(server) as asked:
            for _ in range(3):
                with pytest.raises(ModelParked) as raised:
                    await asked.answer(MemoryJournal())
                assert raised.value.seconds == 3600.0
            assert len(server.seen) == 1
            await asked.time.run(asked.time.sleep(3600.0))
            assert (await asked.answer(MemoryJournal())).text == "later"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "Thu, 26 Nov 2026 13:00:00 GMT"}, 3600.0),
        ({"retry-after": "Thu, 26 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2026-11-26T12:00:20Z",
                "anthropic-ratelimit-tokens-remaining": "0",
                "anthropic-ratelimit-tokens-reset": "2026-11-26T12:01:00Z",
                "anthropic-ratelimit-input-tokens-remaining": "5",
                "anthropic-ratelimit-input-tokens-reset": "2026-11-26T20:00:00Z",
            },
            60.0,
        ),
    ],
)
def test_when_a_server_may_be_asked_again_is_read_from_its_headers(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert seconds_until_reset(headers, NOW) == seconds


async def test_a_server_that_went_away_is_waited_for_and_then_parked() -> None:
    with MessagesServer(saying("first")) as server:
        client = Client({"base_url": server.url, "api_key": "k-0123456789"})
        asked = Asked(client)
        await asked.answer()
    await client.close()
    with pytest.raises(ModelParked) as raised:
        await asked.answer(MemoryJournal())
    assert (raised.value.failure, raised.value.code) == ("unreachable", "MN-0412")


@pytest.mark.parametrize(
    "reply", [Reply(events=HALF), Reply(events=HALF, ending="drop"), failing(409, "conflict_error")]
)
async def test_a_cut_answer_is_asked_again_twice_and_then_goes_back(reply: Reply) -> None:
    error = await given_up(*[reply] * 3, saying("never"), tries=3)
    assert (error.failure, error.fatal) == ("cut", False)
    assert "after 3 tries" in error.reason


async def test_a_malformed_answer_is_asked_again_twice_and_then_goes_back() -> None:
    odd = Reply(events=[*HALF, {"raw": "event: message_delta\ndata: {not json\n\n"}])
    error = await given_up(*[odd] * 3, saying("never"), tries=3)
    assert (error.failure, error.fatal) == ("malformed", False)


async def test_budgets_are_apart_so_that_one_class_does_not_use_up_another_s() -> None:
    cut, busy = Reply(events=HALF), failing(529, "overloaded_error")
    with MessagesServer(cut, busy, cut, busy, busy, busy, saying("whole")) as server:
        async with asking(server) as asked:
            assert (await asked.answer()).text == "whole"
    usages = [call["usage"] for call in asked.journal.calls if call["op"] == "step_fail"]
    assert [usage is None for usage in usages] == [True, False, True, False, False, False]


@pytest.mark.parametrize(
    ("reply", "failure", "code"),
    [
        (failing(400, "invalid_request_error", "no such tool"), "fatal", "MN-0408"),
        (failing(413, "request_too_large", "32 MB"), "fatal", "MN-0408"),
        (failing(400, "invalid_request_error", "prompt is too long: 9 > 8"), "context_overflow", "MN-0407"),
    ],
)
async def test_what_cannot_help_is_not_asked_again(reply: Reply, failure: str, code: str) -> None:
    error = await given_up(reply, saying("never"), tries=1)
    assert (error.failure, error.code, error.fatal) == (failure, code, True)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BETWEEN_BYTES_SECONDS", 0.7)


async def test_a_stalled_stream_is_ended_and_asked_again_at_most_twice(impatient: None) -> None:
    error = await given_up(*[Reply(events=HALF, ending="silent")] * 3, saying("never"), tries=3)
    assert (error.failure, error.code, error.fatal) == ("stalled", "MN-0413", True)


async def test_a_stream_that_stalls_once_goes_on_from_the_journal(impatient: None) -> None:
    with MessagesServer(Reply(events=HALF, ending="silent"), saying("whole")) as server:
        async with asking(server) as asked:
            assert (await asked.answer()).text == "whole"
    assert server.seen[0].body_sha256 == server.seen[1].body_sha256


async def test_before_its_first_byte_a_slow_model_has_more_time(
    impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = saying("I read a long prompt")
    slow.silence = 1.0
    with MessagesServer(slow) as server:
        async with asking(server) as asked:
            assert (await asked.answer()).text == "I read a long prompt"
    monkeypatch.setattr(client_module, "FIRST_BYTE_SECONDS", 0.2)
    error = await given_up(slow, slow, slow, saying("never"), tries=3)
    assert error.failure == "stalled"


class InstantLoop(asyncio.SelectorEventLoop):
    """A loop on which nobody waits for anything real, so that its time is as late as the first timer is due."""

    def __init__(self) -> None:
        super().__init__(selectors.DefaultSelector())
        self._now = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def at_once(timeout: float | None = None) -> list[Any]:
            self._now += timeout or 0.0
            return list(select(0))

        self._selector.select = at_once  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now


def watched(*gaps: float) -> list[bytes]:
    """The bytes of an answer that comes with these gaps, in seconds, before each of them."""
    from mnemosyne.llm.stall import Watched

    class Stream(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for gap in gaps:
                await asyncio.sleep(gap)
                yield b":"

    async def read() -> list[bytes]:
        return [chunk async for chunk in Watched(Stream(), client_module.BETWEEN_BYTES_SECONDS)]

    with asyncio.Runner(loop_factory=InstantLoop) as runner:
        return runner.run(read())


def test_any_byte_is_a_sign_of_life_and_60_seconds_without_one_are_a_stall() -> None:
    assert len(watched(299, *[59] * 100)) == 101
    with pytest.raises(ModelError, match="stopped coming") as raised:
        watched(299, 59, 61)
    assert raised.value.failure == "stalled"


async def test_failures_and_retries_are_counted_by_class() -> None:
    before = metrics.get_metrics_collector().snapshot()

    def more(counter: str, label: str) -> int:
        now = metrics.get_metrics_collector().snapshot()
        return now[counter].get(label, 0) - before[counter].get(label, 0)

    script = [Reply(events=HALF), failing(529, "overloaded_error"), failing(429, "rate_limit_error", retry_after="99")]
    with MessagesServer(*script) as server:
        async with asking(server) as asked:
            with pytest.raises(ModelParked):
                await asked.answer()
            await asked.time.run(asked.time.sleep(99.0))
            server.script.append(saying("ok"))
            await asked.answer()
    assert [more("api_calls", label) for label in ("cut", "overloaded", "wait_until", "ok")] == [1, 1, 1, 1]
    assert [more("retries", label) for label in ("cut", "overloaded", "wait_until")] == [1, 1, 0]
    assert more("parked", "wait_until") == 1


def test_names_that_come_from_outside_cannot_fill_the_counters() -> None:
    collector = metrics.MetricsCollector()
    for number in range(1000):
        collector.count_api_call(f"made up {number}")
    calls = collector.snapshot()["api_calls"]
    assert len(calls) <= 33
    assert sum(calls.values()) == 1000


def test_only_a_class_that_parks_may_be_tried_without_a_number() -> None:
    for failure, rule in RULES.items():
        assert (rule.tries is None) == (rule.used_up is UsedUp.PARKS), failure
        assert (rule.tries is None) == (rule.seconds is not None), failure
