"""What the commands of a task say of a commit, measured with real git and real commands."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from mnemosyne.gates import Before, GateReport, joined_gate, measure_base, refusal, run_gates
from mnemosyne.guard import Guard
from mnemosyne.models import Acceptance
from mnemosyne.workspace import Workspace
from project_files import FILES, FIXED, Files, change, snapshot, write

CHECK = Acceptance(command="python3 tests/test_calc.py", timeout_seconds=20)
COMPILES = Acceptance(command='python3 -c \'compile(open("src/other.py").read(), "o", "exec")\'', timeout_seconds=20)


@pytest.fixture
async def guard() -> AsyncIterator[Guard]:
    started = Guard.start(interpreter=sys.executable)
    yield started
    await started.close()


@pytest.fixture
def workspace(tmp_path: Path, guard: Guard) -> Workspace:
    user = tmp_path / "user"
    write(user, FILES)
    return Workspace(workspace=user, directory=tmp_path / "state" / "runs" / "r-1", guard=guard)


async def test_truth_1_red_before_and_green_after_passes(workspace: Workspace) -> None:
    await workspace.open()
    tree, commit = await change(workspace, FIXED)
    report = await run_gates(
        workspace, tree.base_commit, commit, setup=[], acceptance=[CHECK, COMPILES], file_scope=["src"]
    )
    assert report.passed
    assert report.feedback == ""
    assert [(one.kind, one.command, one.before_exit_code, one.exit_code) for one in report.evidence] == [
        ("acceptance", CHECK.command, 1, 0),
        ("acceptance", COMPILES.command, 0, 0),
    ]
    assert not (workspace.directory / "gates").exists() or not list((workspace.directory / "gates").iterdir())


async def test_truth_1_green_before_the_change_is_no_evidence(workspace: Workspace) -> None:
    await workspace.open()
    tree, commit = await change(workspace, {"src/other.py": "VALUE = 2\n"})
    report = await run_gates(workspace, tree.base_commit, commit, setup=[], acceptance=[COMPILES], file_scope=[])
    assert not report.passed
    assert "No acceptance command was red before the change" in report.feedback
    assert f"{COMPILES.command}: exit code 0 before" in report.feedback
    none = await run_gates(workspace, tree.base_commit, commit, setup=[], acceptance=[], file_scope=[])
    assert not none.passed
    assert "no acceptance command" in none.feedback


async def test_truth_1_red_on_the_commit_fails_with_the_output(workspace: Workspace) -> None:
    await workspace.open()
    tree, commit = await change(workspace, {"src/calc.py": "def add(a, b):\n    return a * b + 1\n"})
    report = await run_gates(workspace, tree.base_commit, commit, setup=[], acceptance=[CHECK], file_scope=["src/"])
    assert not report.passed
    assert f"$ {CHECK.command}\nexit code 1 (before the change: 1)\n" in report.feedback
    assert "AssertionError: 5" in report.feedback
    assert report.evidence[0].exit_code == 1
    assert "AssertionError: 5" in report.evidence[0].output
    # Temporary paths would make the same failure look like another one.
    where = Acceptance(command="pwd; echo $PWD/src/calc.py; exit 3", timeout_seconds=20)
    report = await run_gates(workspace, tree.base_commit, commit, setup=[], acceptance=[where], file_scope=[])
    assert report.evidence[0].output == ".\nsrc/calc.py"


async def test_truth_1_another_command_that_turned_red_fails(workspace: Workspace) -> None:
    await workspace.open()
    tree, commit = await change(workspace, {**FIXED, "src/other.py": "VALUE = = 2\n"})
    report = await run_gates(
        workspace, tree.base_commit, commit, setup=[], acceptance=[CHECK, COMPILES], file_scope=["src"]
    )
    assert not report.passed
    assert [one.exit_code for one in report.evidence] == [0, 1]
    assert "SyntaxError" in report.feedback
    assert CHECK.command not in report.feedback


async def test_a_path_outside_the_scope_fails(workspace: Workspace) -> None:
    await workspace.open()
    tree, commit = await change(workspace, {**FIXED, "src_more/x.py": "x", "README.md": None})
    report = await run_gates(workspace, tree.base_commit, commit, setup=[], acceptance=[CHECK], file_scope=["src/"])
    assert not report.passed
    assert [one.exit_code for one in report.evidence if one.kind == "scope"] == [1]
    assert "README.md\nsrc_more/x.py" in report.feedback
    assert "src/calc.py" not in report.feedback


async def test_a_time_limit_is_red_after_and_no_evidence_before(workspace: Workspace) -> None:
    await workspace.open()
    tree, commit = await change(workspace, FIXED)
    slow_before = Acceptance(command="grep -q '+ b' src/calc.py || sleep 60", timeout_seconds=0.3)
    slow_after = Acceptance(command="! grep -q '+ b' src/calc.py || sleep 60", timeout_seconds=0.3)
    before = await run_gates(workspace, tree.base_commit, commit, setup=[], acceptance=[slow_before], file_scope=[])
    assert not before.passed
    assert "ended by the time limit" in before.feedback
    after = await run_gates(
        workspace, tree.base_commit, commit, setup=[], acceptance=[CHECK, slow_after], file_scope=[]
    )
    assert not after.passed
    assert after.evidence[1].exit_code is None
    assert "no exit code" in after.feedback
    assert "ended by the time limit" in after.feedback


async def test_setup_prepares_both_checkouts_and_its_failure_on_the_commit_is_told(workspace: Workspace) -> None:
    await workspace.open()
    tree, commit = await change(workspace, FIXED)
    needs = Acceptance(command="test -f made && python3 tests/test_calc.py", timeout_seconds=20)
    good = await run_gates(
        workspace, tree.base_commit, commit, setup=["echo x > made"], acceptance=[needs], file_scope=["src"]
    )
    assert good.passed
    assert [(one.kind, one.exit_code) for one in good.evidence] == [("setup", 0), ("acceptance", 0)]
    bad = await run_gates(
        workspace,
        tree.base_commit,
        commit,
        setup=["echo no such package; exit 4"],
        acceptance=[CHECK],
        file_scope=["src"],
    )
    assert not bad.passed
    assert "exit code 4\nno such package" in bad.feedback


async def test_truth_1_what_commands_left_in_their_home_turns_no_gate_green(workspace: Workspace, guard: Guard) -> None:
    await workspace.open()
    tree, commit = await change(workspace, {"new.txt": "x"})
    await guard.run(["/bin/sh", "-c", "touch ~/installed"], cwd=tree.path)
    acceptance = [Acceptance(command="test -e new.txt && test -e ~/installed", timeout_seconds=20)]
    report = await run_gates(workspace, tree.base_commit, commit, setup=[], acceptance=acceptance, file_scope=[])
    assert not report.passed
    report = await run_gates(
        workspace, tree.base_commit, commit, setup=["touch ~/installed"], acceptance=acceptance, file_scope=[]
    )
    assert report.passed


async def test_gates_leave_no_byte_code_and_cannot_change_the_tree(workspace: Workspace) -> None:
    await workspace.open()
    tree, commit = await change(workspace, FIXED)
    before = snapshot(tree.path)
    scribble = Acceptance(command="echo x > src/calc.py; rm -rf tests; exit 1", timeout_seconds=20)
    await run_gates(workspace, tree.base_commit, commit, setup=[], acceptance=[CHECK, scribble], file_scope=[])
    assert snapshot(tree.path) == before
    assert not list(tree.path.rglob("__pycache__"))


async def test_the_joined_gate_needs_every_command_green(workspace: Workspace) -> None:
    await workspace.open()
    tree, commit = await change(workspace, FIXED)
    assert (
        await joined_gate(
            workspace, tree.base_commit, commit, file_scope=[], setup=[], acceptance=[CHECK, COMPILES, CHECK]
        )
    ).passed
    broken = Acceptance(command="echo joined is red; exit 9", timeout_seconds=20)
    report = await joined_gate(
        workspace, tree.base_commit, commit, file_scope=[], setup=["true"], acceptance=[CHECK, broken]
    )
    assert not report.passed
    assert "exit code 9\njoined is red" in report.feedback
    assert [(one.kind, one.exit_code) for one in report.evidence] == [("setup", 0), ("joined", 0), ("joined", 9)]


# -- tests that a change touched --------------------------------------------------------------------------------------

IMPORT = "import sys\nsys.path.insert(0, 'src')\n"
EQUAL: Files = {"tests/test_calc.py": f"{IMPORT}from calc import add\nassert add(2, 2) == 0\n"}
ANYTHING: Files = {"tests/test_calc.py": "assert True\n"}


def run_all(pattern: str = "test_*.py") -> Acceptance:
    """Runs every test script of a folder; what is not there is not run, as with any test runner."""
    command = f"for one in tests/{pattern}; do test ! -e $one || python3 $one || exit 1; done"
    return Acceptance(command=command, timeout_seconds=20)


async def gated(
    workspace: Workspace,
    files: Files,
    *acceptance: Acceptance,
    scope: tuple[str, ...] = (),
    setup: tuple[str, ...] = (),
) -> GateReport:
    await workspace.open()
    tree, commit = await change(workspace, files)
    return await run_gates(
        workspace, tree.base_commit, commit, setup=setup, acceptance=acceptance or [CHECK], file_scope=scope
    )


def touched(report: GateReport) -> list[tuple[str | None, str | None]]:
    return [(one.path, one.change) for one in report.evidence if one.kind == "test"]


def old_tests(report: GateReport) -> list[int | None]:
    return [one.exit_code for one in report.evidence if one.kind == "old_tests"]


@pytest.mark.parametrize("files", [ANYTHING, EQUAL])
async def test_truth_1_a_test_that_was_rewritten_does_not_count_for_the_change(
    workspace: Workspace, files: Files
) -> None:
    report = await gated(workspace, {**files, "src/other.py": "VALUE = 2\n"})
    assert not report.passed
    (seen,) = [one for one in report.evidence if one.kind == "acceptance"]
    assert seen.exit_code == 0, "the commit by itself is green"
    assert old_tests(report) == [1]
    assert touched(report) == [("tests/test_calc.py", "rewritten")]
    assert "rewritten tests/test_calc.py" in report.feedback
    assert "AssertionError: 0" in report.feedback, "the next attempt is shown what the old test says"
    assert "put back into the tree of the next attempt" in report.feedback


async def test_a_rework_after_rewritten_tests_starts_with_the_old_ones_and_the_rest_of_the_change(
    workspace: Workspace,
) -> None:
    report = await gated(workspace, {**ANYTHING, "src/other.py": "VALUE = 2\n"})
    assert report.rework_commit is not None
    base = await workspace.accepted()
    tree = await workspace.create_tree("t1", 2, rejected=(base, report.rework_commit))
    assert (tree.path / "tests/test_calc.py").read_text() == FILES["tests/test_calc.py"]
    assert (tree.path / "src/other.py").read_text() == "VALUE = 2\n"


async def test_truth_1_a_deleted_test_is_run_all_the_same(workspace: Workspace) -> None:
    report = await gated(workspace, {"tests/test_calc.py": None, "src/other.py": "VALUE = 2\n"}, run_all())
    assert not report.passed
    assert touched(report) == [("tests/test_calc.py", "deleted")]
    assert old_tests(report) == [1]


async def test_truth_1_a_test_that_was_moved_out_of_the_way_is_run_where_it_was(workspace: Workspace) -> None:
    moved = {"tests/test_calc.py": None, "tests/off/test_calc.py": FILES["tests/test_calc.py"]}
    report = await gated(workspace, {**moved, "src/other.py": "VALUE = 2\n"}, run_all())
    assert not report.passed
    assert old_tests(report) == [1]


async def test_a_moved_test_is_laid_back_without_its_copy(workspace: Workspace) -> None:
    moved = {"tests/test_calc.py": None, "tests/unit/test_calc.py": FILES["tests/test_calc.py"]}
    # As with pytest, two tests of one name are an error.
    once = "found=$(find tests -name 'test_*.py') && test $(echo $found | wc -w) -eq 1 && python3 $found"
    report = await gated(workspace, {**FIXED, **moved}, Acceptance(command=once, timeout_seconds=20))
    assert report.passed, report.feedback
    assert old_tests(report) == [0]


async def test_truth_1_a_test_that_was_marked_to_be_skipped_is_named_so(workspace: Workspace) -> None:
    skipped = "import unittest\n\n\n@unittest.skip('later')\ndef test_add():\n    assert False\n"
    report = await gated(workspace, {"tests/test_calc.py": skipped, "src/other.py": "VALUE = 2\n"})
    assert not report.passed
    assert touched(report) == [("tests/test_calc.py", "skipped")]


async def test_a_new_test_that_shows_what_is_new_is_evidence(workspace: Workspace) -> None:
    new = {
        "src/calc.py": "def add(a, b):\n    return a - b\n\n\ndef double(a):\n    return 2 * a\n",
        "tests/test_double.py": f"{IMPORT}from calc import double\nassert double(3) == 6\n",
    }
    report = await gated(workspace, new, Acceptance(command="python3 tests/test_double.py", timeout_seconds=20))
    assert report.passed, report.feedback
    assert touched(report) == [("tests/test_double.py", "added")]
    assert old_tests(report) == [], "no test that was there is touched, so nothing is laid back"


async def test_truth_1_a_new_test_that_any_code_passes_is_no_evidence(workspace: Workspace) -> None:
    new = {"src/other.py": "VALUE = 2\n", "tests/test_other.py": "assert True\n"}
    report = await gated(workspace, new, Acceptance(command="python3 tests/test_other.py", timeout_seconds=20))
    assert not report.passed
    assert "not even with the tests of the change laid over the project as it was" in report.feedback
    assert "a lint rule or a size limit" in report.feedback


async def test_a_test_file_that_only_grew_counts_where_the_old_one_is_green_too(workspace: Workspace) -> None:
    more = f"{FILES['tests/test_calc.py']}assert add(2, 3) == 5\n"
    report = await gated(workspace, {**FIXED, "tests/test_calc.py": more})
    assert report.passed, report.feedback
    assert touched(report) == [("tests/test_calc.py", "extended")]
    assert old_tests(report) == [0]


async def test_truth_1_lines_added_to_a_test_so_that_it_ends_early_do_not_count(workspace: Workspace) -> None:
    early = f"raise SystemExit(0)\n{FILES['tests/test_calc.py']}"
    report = await gated(workspace, {"tests/test_calc.py": early, "src/other.py": "VALUE = 2\n"})
    assert not report.passed
    assert old_tests(report) == [1]


async def test_a_task_about_tests_alone_is_measured_against_the_old_tests(workspace: Workspace) -> None:
    report = await gated(workspace, EQUAL, scope=("tests",))
    assert report.passed, report.feedback
    (seen,) = [one for one in report.evidence if one.kind == "acceptance"]
    assert (seen.before_exit_code, seen.exit_code) == (1, 0)
    assert touched(report) == [("tests/test_calc.py", "rewritten")]
    mixed = await gated(workspace, EQUAL, scope=("tests", "src"))
    assert not mixed.passed, "where the code could have been changed, the test is not what has to change"


async def test_truth_1_settings_that_keep_old_tests_from_running_do_not_count(workspace: Workspace) -> None:
    makefile = "test:\n\tpython3 tests/test_calc.py\n"
    write(workspace.workspace, {"Makefile": makefile})
    make = Acceptance(command="make -s test", timeout_seconds=20)
    report = await gated(workspace, {"Makefile": "test:\n\techo ok\n", "src/other.py": "VALUE = 2\n"}, make)
    assert not report.passed
    assert touched(report) == [("Makefile", "rewritten")]
    assert old_tests(report) == [2]


async def test_a_new_target_of_a_makefile_is_measured_on_the_old_code(workspace: Workspace) -> None:
    write(workspace.workspace, {"Makefile": "test:\n\tpython3 tests/test_calc.py\n"})
    limit = "test:\n\tpython3 tests/test_calc.py\n\nsize:\n\ttest $$(wc -l < src/calc.py) -lt 2\n"
    small = {"Makefile": limit, "src/calc.py": "add = int.__add__\n"}
    make = Acceptance(command="make -s size", timeout_seconds=20)
    report = await gated(workspace, small, make, CHECK)
    assert report.passed, report.feedback
    assert [(one.before_exit_code, one.exit_code) for one in report.evidence if one.kind == "acceptance"] == [
        (2, 0),
        (1, 0),
    ]
    pointless = {"Makefile": limit.replace("-lt 2", "-lt 2000"), **FIXED}
    tree, commit = await change(workspace, pointless, attempt=2)
    report = await run_gates(workspace, tree.base_commit, commit, setup=[], acceptance=[make], file_scope=[])
    assert not report.passed, "a limit that the old code keeps too shows nothing"


async def test_truth_1_tests_in_a_file_of_the_code_must_not_become_fewer(workspace: Workspace) -> None:
    write(workspace.workspace, {"src/lib.rs": "#[test]\nfn one() {}\n#[test]\nfn two() {}\n"})
    report = await gated(workspace, {**FIXED, "src/lib.rs": "#[test]\nfn one() {}\n"})
    assert not report.passed
    assert "src/lib.rs has fewer tests than before" in report.feedback


async def test_the_joined_gate_lays_the_accepted_tests_back_too(workspace: Workspace) -> None:
    await workspace.open()
    tree, commit = await change(workspace, {**ANYTHING, "src/other.py": "VALUE = 2\n"})
    report = await joined_gate(
        workspace, tree.base_commit, commit, setup=[], acceptance=[CHECK], file_scope=["src", "tests"]
    )
    assert not report.passed
    assert old_tests(report) == [1]
    allowed = await joined_gate(
        workspace, tree.base_commit, commit, setup=[], acceptance=[CHECK], file_scope=["tests", "src/test_other.py"]
    )
    assert allowed.passed


# -- before anybody is paid ------------------------------------------------------------------------------------------


async def test_truth_1_a_setup_that_fails_before_the_change_makes_nothing_red(workspace: Workspace) -> None:
    report = await gated(workspace, {**FIXED, "made.txt": "x"}, setup=("echo there is no made.txt; test -f made.txt",))
    assert not report.passed, "everything was red before, for another reason"
    assert "The setup fails before the change" in report.feedback
    assert "there is no made.txt" in report.feedback
    (setup,) = [one for one in report.evidence if one.kind == "setup"]
    assert (setup.before_exit_code, setup.exit_code) == (1, 0)


async def test_truth_1_what_could_never_be_shown_is_refused_before_anybody_is_paid(workspace: Workspace) -> None:
    commit = await workspace.open()
    present = frozenset(FILES)

    async def refused(command: Acceptance, scope: list[str], setup: list[str]) -> str:
        before = await measure_base(workspace, commit, setup=setup, acceptance=[command])
        return refusal(before, acceptance=[command], file_scope=scope, present=present)

    assert await refused(CHECK, ["src/calc.py"], []) == ""
    said = await refused(COMPILES, ["src/other.py"], [])
    assert f"$ {COMPILES.command}: exit code 0 before the change" in said
    assert "for a refactoring a new test, a lint rule or a size limit" in said
    assert await refused(COMPILES, ["src/other.py", "tests/test_new.py"], []) == "", (
        "a new test may make the difference"
    )
    assert await refused(COMPILES, [], []) == ""
    assert "The setup fails" in await refused(CHECK, ["src/calc.py"], ["exit 3"])


async def test_what_was_measured_before_is_not_measured_again(workspace: Workspace, tmp_path: Path) -> None:
    base = await workspace.open()
    _, commit = await change(workspace, FIXED)
    counted = Acceptance(command=f"echo x >> {tmp_path}/runs; python3 tests/test_calc.py", timeout_seconds=20)
    known = await measure_base(workspace, base, setup=[], acceptance=[counted])
    assert known == Before([], [1])
    report = await run_gates(workspace, base, commit, setup=[], acceptance=[counted], file_scope=[], known=known)
    assert report.passed
    assert (tmp_path / "runs").read_text() == "x\nx\n"
