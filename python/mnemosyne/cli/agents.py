"""``mnemosyne agents`` and ``drain``: looking at the agents of a run that is worked on, and telling them what to do.

Nothing here touches another process: what is asked for is written into the store, where the process that works on the
run finds it within 0.2 s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mnemosyne.cli.hints import with_store
from mnemosyne.cli.inputs import read_class, store_path
from mnemosyne.cli.runs import find_run, known_runs, list_them
from mnemosyne.cli.style import one_line
from mnemosyne.errors import EnvironmentProblem, InvalidInput
from mnemosyne.names import AgentRole

if TYPE_CHECKING:
    from pydantic import JsonValue

    from mnemosyne.cli.options import Options
    from mnemosyne.cli.output import Output
    from mnemosyne.orchestra import RunOverview

    Json = dict[str, JsonValue]

__all__ = ["add", "agents", "drain", "release", "restart", "scale", "stop"]

DRAIN_SECONDS = 30
"""What work under way gets, as with Ctrl-C. A turn seldom takes longer; what is cut off is asked again."""
_LOOK_SECONDS = 0.1
_PATIENCE = 5.0
"""Seconds that a command waits for its effect. The process looks for commands every 0.2 s."""


def agents(options: Options, output: Output) -> int:
    """List the agents of a run's process."""
    store = store_path(options)
    run = asyncio.run(_run(store, options, output))
    for agent in asyncio.run(_agents(store, run)):
        output.row("agent", agent, [(text, width, "") for text, width in _cells(agent)])
    return 0


def restart(options: Options, output: Output) -> int:
    """Give an agent a new generation; also starts one that was stopped."""
    return _tell(options, output, "restart", lambda before, now: _number(now) > _number(before))


def release(options: Options, output: Output) -> int:
    """Let an agent out of quarantine."""
    return _tell(options, output, "release", lambda _before, now: now["state"] != "quarantined")


def stop(options: Options, output: Output) -> int:
    """End an agent; what it holds may finish within its shutdown time."""
    return _tell(options, output, "stop", lambda _before, now: now["state"] == "stopped")


def add(options: Options, output: Output) -> int:
    """Add an agent to a role, like its first ones or of another class with their configuration."""
    store = store_path(options)
    source = f" {read_class(options.source)}" if options.source is not None else ""
    run = asyncio.run(_run(store, options, output))
    known = {agent["agent_id"] for agent in asyncio.run(_agents(store, run))}

    def added(found: list[Json]) -> list[Json]:
        return [agent for agent in found if agent["role"] == options.role and agent["agent_id"] not in known]

    found = added(asyncio.run(_post(store, run, f"add {options.role}{source}", lambda found: bool(added(found)))))
    if not found:
        output.block(
            "agent", {"run": run.id, "role": options.role}, [f"{options.role} is asked to have one more agent"]
        )
    for agent in found:
        output.block("agent", agent, [f"{agent['agent_id']} is {agent['state']}"])
    return 0


def scale(options: Options, output: Output) -> int:
    """Make the pool of a role as large as asked."""
    store = store_path(options)
    run = asyncio.run(_run(store, options, output))
    role, size = AgentRole(str(options.role)), int(options.size or 0)

    def done(found: list[Json]) -> bool:
        living = [agent for agent in found if agent["role"] == role and agent["state"] != "stopped"]
        return len(living) == size

    found = asyncio.run(_post(store, run, f"scale {role} {size}", done))
    reached = done(found)
    text = f"{role} has {size} agents" if reached else f"{role} is asked to have {size} agents; some still work"
    output.block("scale", {"run": run.id, "role": role.value, "size": size, "reached": reached}, [text])
    return 0


def drain(options: Options, output: Output) -> int:
    """Take in no more work, let what runs finish, and leave the run to be resumed."""
    store = store_path(options)
    run = asyncio.run(_run(store, options, output))
    state = asyncio.run(_drain(store, run))
    text = f"{run.id} is {state}" if state != "running" else f"{run.id} is asked to stop; work is still under way"
    after = [with_store(f"mnemosyne resume {run.id}", options.store)] if state == "interrupted" else []
    output.block("drain", {"run": run.id, "state": state}, [text, *after])
    return 0


def _tell(options: Options, output: Output, verb: str, done: Callable[[Json, Json], bool]) -> int:
    store, name = store_path(options), str(options.name)
    run = asyncio.run(_run(store, options, output))
    known = {str(agent["agent_id"]): agent for agent in asyncio.run(_agents(store, run))}
    if name not in known:
        raise InvalidInput(
            f"run {run.id} has no agent {name!r}",
            code="MN-0362",
            reason=f"its agents are {', '.join(known) or 'none yet'}",
            hint=with_store("mnemosyne agents", options.store),
        )

    def reached(found: list[Json]) -> bool:
        return any(agent["agent_id"] == name and done(known[name], agent) for agent in found)

    found = asyncio.run(_post(store, run, f"{verb} {name}", reached))
    agent = next((agent for agent in found if agent["agent_id"] == name), known[name])
    said = f"{name} is {agent['state']}, generation {agent['generation']}"
    output.block("agent", agent, [said if reached(found) else f"{name} is asked to {verb}; it is {agent['state']} now"])
    return 0


async def _run(store: Path, options: Options, output: Output) -> RunOverview:
    """The run that is named, or the only one that is worked on.

    Raises:
        InvalidInput: There is no such run (MN-0110), none is worked on, or several are (MN-0363).
    """
    found = await known_runs(store)
    if options.run is not None:
        run = find_run(found, options.run, store)
        if run.alive:
            return run
        raise InvalidInput(
            f"nobody works on run {run.id}: it is {run.state}",
            code="MN-0363",
            hint=with_store(f"mnemosyne show {run.id}", options.store),
        )
    living = [run for run in found if run.alive]
    if len(living) == 1:
        return living[0]
    list_them(living, output)
    raise InvalidInput(
        "several runs are worked on" if living else "no run is worked on",
        code="MN-0363",
        hint="name one of them" if living else with_store("mnemosyne runs", options.store),
    )


async def _agents(store: Path, run: RunOverview) -> list[Json]:
    from mnemosyne.orchestra import read_agents

    return await read_agents(store, run.id)


async def _post(store: Path, run: RunOverview, kind: str, done: Callable[[list[Json]], bool]) -> list[Json]:
    from mnemosyne.orchestra import post_command

    await post_command(store, run.id, kind)
    clock = asyncio.get_running_loop().time
    deadline = clock() + _PATIENCE
    found = await _agents(store, run)
    while not done(found) and clock() < deadline:
        await asyncio.sleep(_LOOK_SECONDS)
        found = await _agents(store, run)
    return found


async def _drain(store: Path, run: RunOverview) -> str:
    from mnemosyne.orchestra import post_command, show_run

    await post_command(store, run.id, f"drain {DRAIN_SECONDS}")
    clock = asyncio.get_running_loop().time
    deadline = clock() + DRAIN_SECONDS + 2 * _PATIENCE
    while clock() < deadline:
        result = await show_run(store, run.id)
        if result.error is not None and result.error["code"] == "MN-0365":
            break  # nobody reads the command
        if result.state not in ("running", "waiting", "paused"):
            return result.state
        await asyncio.sleep(_LOOK_SECONDS)
    raise EnvironmentProblem(
        f"run {run.id} still goes on",
        code="MN-0364",
        reason=f"its process (pid {run.pid}) is silent, or did not stop within {DRAIN_SECONDS} s and its grace",
        hint=f"kill {run.pid}",
    )


def _number(agent: Json) -> int:
    return cast(int, agent["generation"])


def _cells(agent: Json) -> list[tuple[str, int]]:
    restarts = f"{agent['restarts']} restarts" if agent["restarts"] else ""
    why = one_line(str(agent["reason"] or agent["last_error"] or ""))
    working = f"on {agent['item']}" if agent["item"] else ""
    return [
        (str(agent["agent_id"]), 18),
        (str(agent["state"]), 14),
        (f"generation {agent['generation']}", 16),
        (restarts, 14),
        (working, 20),
        (why, 0),
    ]
