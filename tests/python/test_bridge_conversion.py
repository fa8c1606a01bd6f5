"""What crosses the border comes back as it was, or is refused with its path: ``tests/shared/conversion.json`` and more.

The embedding tests take the same file from Rust into Python and back.
"""

import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mnemosyne import (
    AgentError,
    AgentExecutionMixin,
    AgentRole,
    AgentSpec,
    ClaudeAgentBridge,
    InvalidInput,
    Orchestra,
    Phase,
    WorkItem,
)
from pydantic import JsonValue, SecretStr

CORPUS = json.loads((Path(__file__).parents[1] / "shared" / "conversion.json").read_text())
UNCHANGED = {case["what"]: case["value"] for case in CORPUS["unchanged"]}
MEGABYTE = 1024 * 1024


class Echo(AgentExecutionMixin):
    """Returns what it was given, or what an expression says, which no JSON could bring here."""

    async def execute_work(self, work_dict: dict[str, Any]) -> dict[str, Any]:
        context = work_dict["context"]
        if "expression" in context:
            return {"success": True, "data": {"a": [0, eval(context["expression"])]}}
        return {"success": True, "data": {"value": context["value"]}}


def item(**context: Any) -> WorkItem:
    return WorkItem(
        id="w-1", description="echo", phase=Phase.PLAN_TO_ARTIFACTS, role=AgentRole.EXECUTOR, context=context
    )


@pytest.fixture
async def bridge() -> AsyncIterator[ClaudeAgentBridge]:
    async with await ClaudeAgentBridge.spawn("executor", Echo) as spawned:
        yield spawned


def exact(value: object) -> str:
    """Tells apart what ``==`` does not: ``1``, ``1.0`` and ``True``, ``0.0`` and ``-0.0``."""
    return json.dumps(value, sort_keys=True)


def nest(depth: int) -> JsonValue:
    value: JsonValue = None
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


@pytest.mark.parametrize("what", UNCHANGED)
async def test_a_value_comes_back_unchanged(bridge: ClaudeAgentBridge, what: str) -> None:
    result = await bridge.send_work(item(value=UNCHANGED[what]))
    assert exact(result.data["value"]) == exact(UNCHANGED[what])


async def test_all_values_together_come_back_unchanged_through_the_store(tmp_path: Path) -> None:
    agents = {AgentRole.EXECUTOR: AgentSpec(source=Echo)}
    async with Orchestra(store=tmp_path / "store.db", agents=agents, api_key=SecretStr("k")) as orchestra:
        work = await orchestra.submit_work(item(value=UNCHANGED))
        result = await work.result()
    assert exact(result.data["value"]) == exact(UNCHANGED)


def generated(rng: random.Random, depth: int) -> JsonValue:
    kind = rng.randrange(9 if depth else 6)
    if kind < 3:
        return rng.choice(
            [None, True, False, rng.getrandbits(64), -rng.getrandbits(63), rng.random() * 10 ** rng.randint(-300, 300)]
        )
    if kind < 6:
        characters = (rng.choice([0x20, 0x7F, 0x7FF, 0xD7FF, 0xFFFF, 0x10FFFF]) for _ in range(rng.randrange(20)))
        codes = (rng.randint(0, most) for most in characters)
        return "".join(chr(code) for code in codes if not 0xD800 <= code <= 0xDFFF)
    if kind == 6:
        return [generated(rng, depth - 1) for _ in range(rng.randrange(6))]
    return {str(generated(rng, 0)): generated(rng, depth - 1) for _ in range(rng.randrange(6))}


async def test_generated_values_come_back_unchanged(bridge: ClaudeAgentBridge) -> None:
    for seed in range(300):
        value = generated(random.Random(seed), 5)
        result = await bridge.send_work(item(value=value))
        assert exact(result.data["value"]) == exact(value), f"seed {seed}"


@pytest.mark.parametrize("text", ["x", "\x00", "ü", "世", "🦀"])
async def test_ten_megabytes_of_text_come_back_unchanged(bridge: ClaudeAgentBridge, text: str) -> None:
    value = text * (10 * MEGABYTE // len(text.encode()))
    result = await bridge.send_work(item(value={"text": value}))
    assert result.data["value"] == {"text": value}


async def test_a_value_as_deep_as_is_allowed_comes_back_unchanged(bridge: ClaudeAgentBridge) -> None:
    value = nest(150)
    assert (await bridge.send_work(item(value=value))).data["value"] == value


@pytest.mark.parametrize("case", CORPUS["refused"], ids=lambda case: case["what"])
async def test_what_json_cannot_say_is_refused_with_its_path_when_an_agent_returns_it(
    bridge: ClaudeAgentBridge, case: dict[str, str]
) -> None:
    with pytest.raises(AgentError, match=case["because"]) as caught:
        await bridge.send_work(item(expression=case["python"]))
    assert "data.a" in str(caught.value)
    assert ".1" in str(caught.value)


@pytest.mark.parametrize("case", CORPUS["refused"], ids=lambda case: case["what"])
async def test_what_json_cannot_say_is_refused_with_its_path_before_it_is_sent(
    bridge: ClaudeAgentBridge, case: dict[str, str]
) -> None:
    for send in (bridge.send_work, bridge.try_send_work):
        # The model refuses most; what it lets pass, the border refuses. Both are a ValueError.
        with pytest.raises(ValueError, match=case["because"]) as caught:
            await send(item(value=[0, eval(case["python"])]))
        assert "context.value" in str(caught.value)
        assert bridge.health().error_count == 0


@pytest.mark.parametrize("case", CORPUS["refused"], ids=lambda case: case["what"])
async def test_what_json_cannot_say_is_refused_with_its_path_in_a_configuration(case: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match=case["because"]) as caught:
        await ClaudeAgentBridge.spawn("executor", AgentSpec(source=Echo, config={"x": [0, eval(case["python"])]}))
    assert "config.x.1" in str(caught.value)
    assert caught.value.code == "MN-0350"


async def test_what_is_nested_too_deeply_is_refused(bridge: ClaudeAgentBridge) -> None:
    for depth in (250, 100_000):
        with pytest.raises(ValueError, match="context"):
            await bridge.send_work(item(value=nest(depth)))
        with pytest.raises(InvalidInput, match="too deeply"):
            await ClaudeAgentBridge.spawn("executor", AgentSpec(source=Echo, config={"x": nest(depth)}))
