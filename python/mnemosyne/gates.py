"""The gates: what a task's commands say of a commit, measured by us in throwaway checkouts (TRUTH-1).

```
before     the base, with the tests of the change    red: at least one command    the change makes a difference
commit     what was made                             green: all commands          it works
old tests  the commit, with the tests of the base    green: all commands          and by the tests that were there
```

Tests that a change rewrote, deleted, skipped or weakened do not count for it: with the old tests laid back, every
command has to be green as well. New tests are laid over the base too, so that a test which any code would pass is no
evidence. Where a change touches no test, *before* is the base and *old tests* is the commit: two trees are measured.

A task whose scope holds nothing but tests is there to change them. It is measured against the base as it was: its
commands have to be red with the old tests.

What is red for another reason counts for nothing: a setup command that fails before the change, a time limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mnemosyne.guard import CommandResult
from mnemosyne.models import Acceptance, Evidence
from mnemosyne.testfiles import ChangedTest, changed_test, holds_only_tests, may_hold_tests, may_judge
from mnemosyne.workspace import Change, Workspace, outside_scope

__all__ = ["Before", "GateReport", "joined_gate", "measure_base", "refusal", "run_gates"]

_SETUP_SECONDS = 900.0
_EVIDENCE_CHARACTERS = 4_000
"""Of an output, its tail: what goes into a prompt and is kept for ever."""
_NOTHING = ("000000", "0" * 40)
"""Mode and object name of a path that is not there."""

_ADVICE = (
    "A task needs a command that fails before the change and succeeds after it: a test of what it adds; for a "
    "refactoring a new test, a lint rule or a size limit."
)
_SETUP_ADVICE = (
    "Until the setup succeeds before the change too (where the files it needs come with a task, it can check for them: "
    "`test ! -f package.json || npm ci`), whatever is red there is no evidence."
)


@dataclass(frozen=True)
class GateReport:
    """What the commands said."""

    passed: bool
    evidence: list[Evidence]
    feedback: str
    """For the next attempt: every reason, with the failing output; empty if it passed."""
    rework_commit: str | None = None
    """Where the next attempt starts, if not from the commit: the same with the old tests laid back."""


@dataclass(frozen=True)
class Before:
    """What the commands said before the change."""

    setup: list[Evidence] = field(default_factory=list)
    """The setup commands that were run, each with its exit code before the change."""
    exit_codes: list[int | None] = field(default_factory=list)
    """Of the acceptance commands, in their order; None where one did not end by itself. Empty if the setup failed."""

    @property
    def broken(self) -> list[Evidence]:
        """The setup commands that failed."""
        return [one for one in self.setup if one.before_exit_code != 0]


@dataclass(frozen=True)
class _Measured:
    setup: list[tuple[str, CommandResult]]
    acceptance: list[CommandResult]
    """Nothing if the setup failed."""


async def measure_base(
    workspace: Workspace, commit: str, *, setup: Sequence[str], acceptance: Sequence[Acceptance]
) -> Before:
    """Measure the accepted files before anybody was paid to change them."""
    (measured,) = await _measure(workspace, [commit], setup, acceptance)
    return _before(measured)


def refusal(
    before: Before, *, acceptance: Sequence[Acceptance], file_scope: Sequence[str], present: Collection[str]
) -> str:
    """Say why no change within the scope could ever pass the gates; empty where one could.

    Args:
        present: The files of the project. Where the scope has room for tests, a new one may still turn a command red.
    """
    if before.broken:
        return _broken_setup(before)
    if any(code != 0 for code in before.exit_codes) or may_hold_tests(file_scope, present):
        return ""
    return _no_evidence(acceptance, before.exit_codes)


async def run_gates(
    workspace: Workspace,
    base: str,
    commit: str,
    *,
    setup: Sequence[str],
    acceptance: Sequence[Acceptance],
    file_scope: Sequence[str],
    known: Before | None = None,
) -> GateReport:
    """Measure a commit. It passes if nothing that the module's text says is against it, and no path is out of scope.

    Args:
        workspace: Makes the checkouts and runs the commands.
        base: The commit before.
        commit: The commit under review.
        setup: Shell commands that prepare a fresh checkout; they must succeed before and after.
        acceptance: The task's commands.
        file_scope: Path prefixes that may differ; none means all.
        known: What the commands said on the base, where that was measured already.
    """
    changes = await workspace.raw_changes(base, commit)
    touched = await _touched(workspace, base, commit, changes)
    laid = {} if holds_only_tests(file_scope) else touched
    first = await workspace.overlaid(base, _new_sides(changes, laid)) if laid else base
    old_tests = await _with_old_tests(workspace, commit, changes, laid)
    trees = [commit, *([old_tests] if old_tests else []), *([] if known and first == base else [first])]
    measured = await _measure(workspace, trees, setup, acceptance)
    before = known if known and first == base else _before(measured[-1])
    evidence = [
        *_setup_evidence(measured[0], before),
        *_acceptance_evidence("acceptance", acceptance, measured[0], before.exit_codes),
    ]
    reasons = _red(evidence)
    against = _against(acceptance, measured[1], evidence) if old_tests else []
    evidence += [*against, *(_test_evidence(one) for one in touched.values())]
    if any(one.exit_code != 0 for one in against):
        reasons.append(_rewritten(laid.values(), [one for one in against if one.exit_code != 0]))
    reasons += [_lost_in_code(one) for one in laid.values() if one.in_code]
    if outside := outside_scope((change.path for change in changes), file_scope):
        listing = "\n".join(outside)
        evidence.append(Evidence(kind="scope", exit_code=1, output=listing[-_EVIDENCE_CHARACTERS:]))
        reasons.insert(0, f"These paths are outside the task's scope ({', '.join(file_scope)}):\n{listing}")
    if before.broken:
        reasons.append(_broken_setup(before))
    elif not _red(evidence) and not any(code not in (0, None) for code in before.exit_codes):
        reasons.append(_no_evidence(acceptance, before.exit_codes, touched=laid.values()))
    back = old_tests if any(one.exit_code != 0 for one in against) else None
    rework = await workspace.commit_of(back, base, "with the tests that were there before") if back else None
    return GateReport(not reasons, evidence, "\n\n".join(reasons), rework)


async def joined_gate(
    workspace: Workspace,
    old: str,
    new: str,
    *,
    setup: Sequence[str],
    acceptance: Sequence[Acceptance],
    file_scope: Sequence[str],
) -> GateReport:
    """Run the commands of all accepted tasks on a merged commit: all must be green, with the old tests too.

    Args:
        workspace: As for ``run_gates``.
        old: The accepted commit.
        new: What would be accepted.
        setup: As for ``run_gates``.
        acceptance: Commands of this task and of all that were accepted before.
        file_scope: Of this task.
    """
    longest: dict[str, Acceptance] = {}
    for one in acceptance:
        known = longest.get(one.command)
        if known is None or known.timeout_seconds < one.timeout_seconds:
            longest[one.command] = one
    commands = list(longest.values())
    changes = await workspace.raw_changes(old, new)
    touched = {} if holds_only_tests(file_scope) else await _touched(workspace, old, new, changes)
    old_tests = await _with_old_tests(workspace, new, changes, touched)
    measured = await _measure(workspace, [new, *([old_tests] if old_tests else [])], setup, commands)
    evidence = [*_setup_evidence(measured[0], Before()), *_acceptance_evidence("joined", commands, measured[0], [])]
    reasons = _red(evidence)
    against = _against(commands, measured[1], evidence) if old_tests else []
    if red := [one for one in against if one.exit_code != 0]:
        reasons.append(_rewritten(touched.values(), red))
    return GateReport(not reasons, [*evidence, *against], "\n\n".join(reasons))


# -- trees -----------------------------------------------------------------------------------------------------------


async def _touched(workspace: Workspace, base: str, commit: str, changes: Sequence[Change]) -> dict[str, ChangedTest]:
    """Return what a change did to tests, by path."""
    likely = [one for one in changes if may_judge(one.path)]
    if not likely:
        return {}
    present = frozenset(await workspace.files(base).list_files())
    paths = [one.path for one in likely if _is_utf8(one.path)]
    old, new = await workspace.files(base).read_files(paths), await workspace.files(commit).read_files(paths)
    found: dict[str, ChangedTest] = {}
    for one in likely:
        # What cannot be read as a file (a link to nowhere, an odd name) is none that could be compared.
        before = None if one.old_mode == _NOTHING[0] else old.get(one.path, b"\0")
        after = None if one.new_mode == _NOTHING[0] else new.get(one.path, b"\0")
        if (changed := changed_test(one.path, before, after, present)) is not None:
            found[one.path] = changed
    return found


def _new_sides(changes: Sequence[Change], touched: Collection[str]) -> list[tuple[str, str, str]]:
    return [(one.new_mode, one.new_object, one.path) for one in changes if one.path in touched]


async def _with_old_tests(
    workspace: Workspace, commit: str, changes: Sequence[Change], touched: dict[str, ChangedTest]
) -> str | None:
    """Return the tree of a commit with the tests as they were; None if the change is not against any of them."""
    back = [one for one in changes if one.path in touched and touched[one.path].protected]
    if not back:
        return None
    entries = [(one.old_mode, one.old_object, one.path) for one in back]
    # One that was moved goes back to where it was: twice it may be in its own way.
    moved = {one.old_object for one in back if one.status == "D"}
    entries += [(*_NOTHING, one.path) for one in changes if one.status == "A" and one.new_object in moved]
    return await workspace.overlaid(commit, entries)


async def _measure(
    workspace: Workspace, trees: Sequence[str], setup: Sequence[str], acceptance: Sequence[Acceptance]
) -> list[_Measured]:
    async with workspace.checkouts(*trees) as paths:
        # Installers share caches and locks: with a setup, one checkout after the other.
        turns = asyncio.Semaphore(1 if setup else 2)

        async def run(path: Path) -> _Measured:
            async with turns:
                return await _run_commands(workspace, path, setup, acceptance)

        return await asyncio.gather(*map(run, paths))


async def _run_commands(
    workspace: Workspace, path: Path, setup: Sequence[str], acceptance: Sequence[Acceptance]
) -> _Measured:
    done = _Measured([], [])
    for command in setup:
        result = await workspace.run_command(path, command, _SETUP_SECONDS)
        done.setup.append((command, result))
        if result.exit_code != 0:
            return done
    for one in acceptance:
        done.acceptance.append(await workspace.run_command(path, one.command, one.timeout_seconds))
    return done


# -- evidence and wording ------------------------------------------------------------------------------------------


def _before(measured: _Measured) -> Before:
    setup = [
        Evidence(kind="setup", command=command, before_exit_code=result.exit_code, output=_tail(result))
        for command, result in measured.setup
    ]
    return Before(setup, [result.exit_code for result in measured.acceptance])


def _setup_evidence(measured: _Measured, before: Before) -> list[Evidence]:
    codes = [one.before_exit_code for one in before.setup] + [None] * len(measured.setup)
    return [
        _evidence("setup", command, result, code)
        for (command, result), code in zip(measured.setup, codes, strict=False)
    ]


def _acceptance_evidence(
    kind: str, acceptance: Sequence[Acceptance], measured: _Measured, before: Sequence[int | None]
) -> list[Evidence]:
    # After a failed setup there are no results; then the setup's own evidence is red.
    codes = [*before, *[None] * len(acceptance)]
    return [
        _evidence(kind, one.command, result, code)
        for one, result, code in zip(acceptance, measured.acceptance, codes, strict=False)
    ]


def _against(acceptance: Sequence[Acceptance], measured: _Measured, seen: Sequence[Evidence]) -> list[Evidence]:
    """What the commands that are green on the commit say with the old tests."""
    green = {one.command for one in seen if one.exit_code == 0}
    found = [*_setup_evidence(measured, Before()), *_acceptance_evidence("old_tests", acceptance, measured, [])]
    return [one.model_copy(update={"kind": "old_tests"}) for one in found if one.command in green]


def _test_evidence(touched: ChangedTest) -> Evidence:
    return Evidence(kind="test", path=touched.path, change=touched.change)


def _evidence(kind: str, command: str, result: CommandResult, before: int | None) -> Evidence:
    return Evidence(
        kind=kind,
        command=command,
        exit_code=result.exit_code,
        before_exit_code=before,
        seconds=round(result.seconds, 3),
        output=_tail(result),
    )


def _tail(result: CommandResult) -> str:
    output = result.output[-_EVIDENCE_CHARACTERS:]
    if result.timed_out:
        output = f"{output}\n[ended by the time limit after {result.seconds:.0f} s]".lstrip("\n")
    return output


def _red(evidence: Sequence[Evidence]) -> list[str]:
    reasons = []
    for one in evidence:
        if one.exit_code == 0 or one.kind not in ("setup", "acceptance", "joined", "old_tests"):
            continue
        code = "no exit code" if one.exit_code is None else f"exit code {one.exit_code}"
        before = "" if one.before_exit_code is None else f" (before the change: {one.before_exit_code})"
        reasons.append(f"$ {one.command}\n{code}{before}\n{one.output}".rstrip())
    return reasons


def _rewritten(touched: Collection[ChangedTest], red: Sequence[Evidence]) -> str:
    listing = ", ".join(f"{one.change} {one.path}" for one in touched if one.protected)
    outputs = "\n\n".join(_red(red))
    return (
        f"Tests that a change rewrote, deleted, skipped or weakened do not count for it: {listing}.\n"
        f"With these as they were before the change, it fails:\n\n{outputs}\n\n"
        "They have been put back into the tree of the next attempt: leave them, and make the code pass them. Show "
        "what is new in a test file of its own. If one of them contradicts the task, say so and leave it: changing it "
        "takes a task whose scope holds nothing but tests."
    )


def _lost_in_code(touched: ChangedTest) -> str:
    what = "marks more tests to be skipped" if touched.change == "skipped" else "has fewer tests"
    return f"{touched.path} {what} than before. Tests that a change takes away do not count for it: put them back."


def _broken_setup(before: Before) -> str:
    failed = before.broken[-1]
    code = "no exit code" if failed.before_exit_code is None else f"exit code {failed.before_exit_code}"
    return f"The setup fails before the change:\n$ {failed.command}\n{code}\n{failed.output}\n{_SETUP_ADVICE}"


def _no_evidence(
    acceptance: Sequence[Acceptance], codes: Sequence[int | None], *, touched: Collection[ChangedTest] = ()
) -> str:
    if not acceptance:
        return "The task has no acceptance command, so nothing shows that it is done."
    head = "No acceptance command was red before the change, so none shows that it did anything"
    if touched:
        head += ", not even with the tests of the change laid over the project as it was"
    lines = [
        f"$ {one.command}: {'ended by the time limit' if code is None else f'exit code {code}'} before the change"
        for one, code in zip(acceptance, codes, strict=True)
    ]
    return "\n".join([f"{head}:", *lines, _ADVICE])


def _is_utf8(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
