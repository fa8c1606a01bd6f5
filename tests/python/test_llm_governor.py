"""One governor for all agents: less at a time where a server is overloaded, one probe at a time where it is down."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest
from mnemosyne.llm.failures import Failure
from mnemosyne.llm.governor import Governor, Governors, Held, Permit
from overload_wall import Wall, governed
from virtual_time import VirtualTime, minutes


def governor() -> tuple[Governor, VirtualTime]:
    time = VirtualTime()
    return Governor("http://localhost", "demo", time, random.Random(7)), time


async def admitted(governor: Governor, count: int) -> list[Permit]:
    return [await governor.admit(900.0) for _ in range(count)]


def overload(permit: Permit, retry_after: float | None = None, failure: Failure = Failure.OVERLOADED) -> None:
    permit.failed(failure, retry_after)
    permit.release()


def answer(permit: Permit) -> None:
    permit.accepted()
    permit.release()


async def opened() -> tuple[Governor, VirtualTime]:
    subject, time = governor()
    for permit in await admitted(subject, 5):
        overload(permit)
    assert subject.is_open
    return subject, time


async def test_one_endpoint_and_model_has_one_governor() -> None:
    governors = Governors()
    assert governors.of("a", "m") is governors.of("a", "m")
    assert governors.of("a", "m") is not governors.of("a", "n")
    assert governors.of("a", "m") is not governors.of("b", "m")


async def test_until_an_overload_nobody_is_held_back() -> None:
    subject, _ = governor()
    assert len(await admitted(subject, 100)) == 100


async def test_requests_that_were_under_way_together_halve_the_limit_once() -> None:
    subject, _ = governor()
    permits = await admitted(subject, 8)
    for permit in permits[:4]:
        overload(permit)
    assert subject.limit == 4.0


async def test_the_limit_falls_by_half_to_one_and_climbs_back_by_one_for_each_round() -> None:
    subject, _ = governor()
    for expected in (4.0, 2.0, 1.0, 1.0):
        permits = await admitted(subject, 8 if subject.limit > 8 else int(subject.limit))
        overload(permits[0])
        for permit in permits[1:]:
            permit.release()
        assert subject.limit == expected
    assert not subject.is_open
    for _ in range(5):
        before = subject.limit
        for permit in await admitted(subject, int(subject.limit)):
            answer(permit)
        assert 0.5 < subject.limit - before <= 1.0


async def test_who_is_over_the_limit_waits_and_is_served_in_the_order_of_coming() -> None:
    subject, time = governor()
    first, *others = await admitted(subject, 3)
    overload(first)
    served: list[int] = []

    async def wants(number: int) -> None:
        permit = await subject.admit(900.0)
        served.append(number)
        await time.sleep(1.0)
        permit.release()

    async def frees() -> None:
        await time.sleep(10.0)
        assert served == []
        for permit in others:
            permit.release()

    await time.run(*(wants(number) for number in range(4)), frees())
    assert served == [0, 1, 2, 3]
    assert subject.in_flight == 0


async def test_five_overloads_in_a_row_open_the_breaker_and_an_answer_between_them_does_not() -> None:
    subject, _ = governor()
    for _ in range(3):
        for permit in (await admitted(subject, 1))[:1]:
            overload(permit)
        answer(await subject.admit(900.0))
    assert not subject.is_open
    subject, _ = await opened()
    [(is_open, data)] = subject.news
    assert is_open
    assert data == {"endpoint": "http://localhost", "model": "demo", "overloads": 5, "failure": "overloaded"}


async def test_while_the_breaker_is_open_one_probe_at_a_time_is_let_through_in_growing_intervals() -> None:
    subject, time = await opened()
    probing, most, at = 0, 0, []

    async def agent() -> None:
        nonlocal probing, most
        for _ in range(3):
            permit = await subject.admit(900.0)
            probing, most = probing + 1, max(most, probing + 1)
            at.append(time.now())
            await time.sleep(5.0)  # the server takes its time
            probing -= 1
            overload(permit)

    await time.run(*(agent() for _ in range(8)))
    assert most == 1
    gaps = [later - earlier - 5.0 for earlier, later in itertools.pairwise(at)]
    bounds = [min(60.0, 2.0**probes) for probes in range(1, len(at))]
    assert all(bound / 2 <= gap <= bound for gap, bound in zip(gaps, bounds, strict=True)), gaps


async def test_the_first_answer_closes_the_breaker_and_the_limit_climbs_from_one() -> None:
    subject, time = await opened()

    async def probe() -> None:
        answer(await subject.admit(900.0))

    await time.run(probe())
    assert not subject.is_open
    assert subject.limit == 2.0
    is_open, data = subject.news[-1]
    assert (is_open, data["probes"]) == (False, 1)


async def test_a_probe_that_was_answered_does_not_let_another_one_through_when_the_breaker_opens_again() -> None:
    subject, time = await opened()

    async def probe() -> Permit:
        return await subject.admit(900.0)

    [answered] = await time.run(probe())
    answered.accepted()  # and its answer goes on for minutes
    subject.limit = 8.0  # others were answered meanwhile
    for permit in await admitted(subject, 5):
        overload(permit)
    assert subject.is_open
    [probing] = await time.run(probe())
    overload(answered)

    async def second() -> None:
        with pytest.raises(Held):
            await subject.admit(60.0)

    await time.run(second())
    probing.release()


@pytest.mark.parametrize("failure", [Failure.FATAL, Failure.CONTEXT_OVERFLOW])
async def test_a_server_that_says_no_is_not_overloaded(failure: Failure) -> None:
    subject, time = await opened()

    async def probe() -> None:
        permit = await subject.admit(900.0)
        permit.failed(failure, None)
        permit.release()

    await time.run(probe())
    assert not subject.is_open


async def test_a_probe_that_ends_without_a_word_leaves_the_breaker_open_and_lets_another_probe() -> None:
    subject, time = await opened()

    async def probe() -> None:
        permit = await subject.admit(900.0)
        permit.failed(Failure.CUT, None)
        permit.release()

    await time.run(probe(), probe())
    assert subject.is_open
    assert subject.in_flight == 0


async def test_a_waiter_that_is_cancelled_leaves_the_queue_to_the_next() -> None:
    subject, time = await opened()

    async def gives_up() -> None:
        await subject.admit(900.0)

    async def probe() -> None:
        first.cancel()
        answer(await subject.admit(900.0))

    first = asyncio.create_task(gives_up())
    await asyncio.sleep(0)
    await time.run(probe())
    assert first.cancelled()
    assert not subject.is_open


async def test_an_overload_in_the_middle_of_an_answer_counts_though_it_had_begun() -> None:
    subject, _ = governor()
    permits = await admitted(subject, 4)
    permits[0].accepted()
    overload(permits[0])
    assert subject.limit == 2.0


async def test_a_short_time_that_the_server_names_holds_everybody_and_a_long_one_parks_them() -> None:
    subject, time = governor()
    overload(await subject.admit(900.0), 20.0, Failure.WAIT_UNTIL)
    at: list[float] = []

    async def waits() -> None:
        answer(await subject.admit(900.0))
        at.append(time.now())

    await time.run(waits(), waits())
    assert at == [20.0, 20.0]

    async def parks() -> float | None:
        with pytest.raises(Held) as raised:
            await subject.admit(900.0)
        return raised.value.seconds

    under_way = await admitted(subject, int(subject.limit))

    async def is_told() -> float | None:
        await time.sleep(5.0)
        for permit in under_way:
            overload(permit, 7200.0, Failure.WAIT_UNTIL)
        return None

    told = await time.run(parks(), parks(), is_told())
    assert told == [3600.0, 3600.0, None], "who waits already is told too"


async def test_who_waited_for_as_long_as_it_may_is_held() -> None:
    subject, time = await opened()

    async def agent() -> None:
        while True:
            overload(await subject.admit(900.0 - time.now()))

    with pytest.raises(Held) as raised:
        await time.run(agent())
    assert (raised.value.seconds, raised.value.failure) == (None, Failure.OVERLOADED)
    assert time.now() == 900.0


async def test_in_a_wall_of_20_minutes_nothing_fails_and_one_probe_at_a_time_is_sent() -> None:
    wall = Wall(minutes=20)
    outcome = await governed(wall, tasks=8)
    assert outcome.answered == 8
    assert outcome.failed == 0
    assert outcome.parked == 8, "each was parked once, after its 15 minutes"
    assert all(840.0 <= at <= 900.0 for at in outcome.parked_at)
    assert outcome.most_while_open == 1
    assert [opened for opened, _ in outcome.breaker] == [True, False]
    assert wall.ends <= outcome.ended <= wall.ends + 120.0
    per_minute = minutes(wall.times, 20)
    assert per_minute[0] <= 8 + 2 * 5 + 6
    assert max(per_minute[2:]) <= 4
    assert sum(per_minute) <= 60
