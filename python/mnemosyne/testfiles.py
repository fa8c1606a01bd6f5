"""Which files judge a project, and what a change did to them: a test that a change rewrote does not count for it.

A path is a *test* by its name or its folder, as the test runners of the common languages find them, with what those
tests need beside them (fixtures, snapshots) and with the files that only say which tests and checks run
(``pytest.ini``, ``conftest.py``, ``.eslintrc``). Some files hold such *settings* beside other things
(``pyproject.toml``, ``package.json``, a ``Makefile``); there only those settings are compared, so that a new dependency
is no change of a test, and a changed ``addopts`` is one.

All of it is a pure function of paths and texts. What is done about a change is decided in ``gates``.
"""

from __future__ import annotations

import configparser
import json
import posixpath
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mnemosyne.workspace import as_text

__all__ = ["ChangeKind", "ChangedTest", "changed_test", "holds_only_tests", "is_test", "may_hold_tests", "may_judge"]

ChangeKind = Literal["added", "extended", "rewritten", "skipped", "deleted"]

_FOLDERS = frozenset({"test", "tests", "__tests__", "__mocks__", "__snapshots__", "testdata"})
_NAMES = re.compile(
    r"test_.+\.(py|rb|c|cc|cpp|sh|el)|.+_test\.(py|go|rb|rs|c|cc|cpp|dart|exs|sh)|.+_tests\.rs|tests?\.(py|rs)"
    r"|.+\.(test|spec|cy)\.([cm]?[jt]sx?)|.+_spec\.(rb|lua)|spec_helper\.rb|.+Tests?\.(java|kt|cs|php|swift|scala)"
    r"|.+(IT|Spec)\.(java|kt|scala|groovy)|.+\.(bats|snap|feature)"
)
_CONTROLS = re.compile(
    r"conftest\.py|\.?pytest\.ini|\.coveragerc|(jest|vitest|playwright|cypress)\.config\..+|\.mocharc\..+|karma\.conf\..+"
    r"|\.rspec|phpunit\.xml(\.dist)?|\.?ruff\.toml|\.?mypy\.ini|\.flake8|\.?pylintrc|\.eslintrc.*|eslint\.config\..+"
    r"|\.?clippy\.toml|\.golangci\.ya?ml|biome\.jsonc?"
)
"""Files that say which tests and checks are run, and nothing else."""
_MAKEFILES = ("GNUmakefile", "makefile", "Makefile")
"""In the order in which make looks for them."""
_PACKAGING = frozenset(
    {"poetry", "setuptools", "setuptools_scm", "hatch", "pdm", "uv", "flit", "maturin", "cibuildwheel", "scikit-build"}
)
"""Tables ``tool.X`` of a ``pyproject.toml`` that say nothing about tests or checks."""
_CHECKING_SECTIONS = re.compile(
    r"(tool:)?(pytest|unittest|testenv|tox|flake8|mypy|coverage|pylint|isort|pycodestyle)\b.*"
)
_CHECKING_KEYS = ("jest", "mocha", "ava", "vitest", "tap", "nyc", "c8", "eslintConfig", "eslintIgnore")
_MAKE_LINE = re.compile(r"(?P<target>[^\s#:=][^#:=]*?)\s*::?(?!=)|(?:export\s+)?(?P<variable>[\w.]+)\s*[:?+]{0,2}=")
_MAKE_SWITCHES = frozenset({".IGNORE", "MAKEFLAGS", "GNUMAKEFLAGS", "SHELL", ".SHELLFLAGS"})
"""Make lets these decide whether any command of any target can fail."""
_SKIPS = re.compile(
    r"@(\w+\.)*skip(If|Unless)?\b|\bpytest\.(mark\.)?(skip|skipif|xfail|importorskip)\b|\.skipTest\(|\bSkipTest\b"
    r"|\bexpectedFailure\b|__test__\s*=\s*False|\.(skip|only|todo|failing)\(|\bx(it|describe|test)\("
    r"|\bt\.Skip(f|Now)?\(|#\[ignore|@(Disabled|Ignore)\b"
)
_HOOKS = re.compile(r"\bdef\s+pytest_|\bcollect_ignore|\bexit\(|" + _SKIPS.pattern)
"""What in a new ``conftest.py`` can keep tests that were there from being run, or from failing."""
_RUST_TEST = re.compile(r"#\[(?:[\w:]+::)?test\b")


@dataclass(frozen=True)
class ChangedTest:
    """A file that judges the project and that a change touched.

    Attributes:
        change: ``extended``: every line that was there still is, in its place. ``skipped``: there are more marks that
            skip tests than before.
        protected: It could be what makes a command green, so the accepted version is to be laid back (or the file
            taken away, where there was none) to see what the commands say then.
        in_code: The tests stand in a file of the code itself, so that they cannot be laid back.
    """

    path: str
    change: ChangeKind
    protected: bool = True
    in_code: bool = False


def is_test(path: str) -> bool:
    """Return whether a path is a test, needed by tests, or says which tests and checks run."""
    folder, name = posixpath.split(path)
    return bool(_FOLDERS & set(folder.split("/"))) or _is_named_so(name)


def holds_only_tests(file_scope: Sequence[str]) -> bool:
    """Return whether a task may change nothing but tests: then changing them is what it is for."""
    return bool(file_scope) and all(
        is_test(prefix) or posixpath.basename(prefix) in _FOLDERS for prefix in map(posixpath.normpath, file_scope)
    )


def may_hold_tests(file_scope: Sequence[str], present: Collection[str]) -> bool:
    """Return whether a task may change or add a test, or settings of tests, anywhere in its scope.

    Args:
        present: The files of the project.
    """
    return not file_scope or any(_may_hold_tests(posixpath.normpath(prefix), present) for prefix in file_scope)


def _may_hold_tests(prefix: str, present: Collection[str]) -> bool:
    name = posixpath.basename(prefix)
    if is_test(prefix) or _has_settings(name):
        return True
    # A path that does not exist yet is a file if it looks like one.
    return prefix not in present and (
        "." not in name.strip(".") or any(path.startswith(f"{prefix}/") for path in present)
    )


def may_judge(path: str) -> bool:
    """Return whether a change of this path can be a matter of tests; what it holds says whether it is one."""
    return is_test(path) or _has_settings(posixpath.basename(path)) or path.endswith(".rs")


def changed_test(path: str, before: bytes | None, after: bytes | None, present: Collection[str]) -> ChangedTest | None:
    """Say what a change did to the tests in one file; None if that is no matter of tests.

    Args:
        path: The file.
        before: Its content, or None where there was none.
        after: Its content, or None where there is none any more.
        present: All files before the change: where there were no tests, none can be kept from running.
    """
    name = posixpath.basename(path)
    if is_test(path):
        return ChangedTest(path, *_of_test(name, before, after, present))
    if _has_settings(name):
        return _of_settings(path, _text(before), _text(after), present)
    if name.endswith(".rs"):
        return _of_code(path, _text(before), _text(after))
    return None


def _is_named_so(name: str) -> bool:
    return bool(_NAMES.fullmatch(name) or _CONTROLS.fullmatch(name))


def _of_test(name: str, before: bytes | None, after: bytes | None, present: Collection[str]) -> tuple[ChangeKind, bool]:
    if before is None:
        in_the_way = name != "conftest.py" or bool(_HOOKS.search(_text(after)))
        return "added", bool(_CONTROLS.fullmatch(name)) and in_the_way and any(map(is_test, present))
    if after is None:
        return "deleted", True
    old, new = as_text(before), as_text(after)
    if old is None or new is None:
        return "rewritten", True
    if len(_SKIPS.findall(new)) > len(_SKIPS.findall(old)):
        return "skipped", True
    return ("extended" if _is_kept(old.splitlines(), new.splitlines()) else "rewritten"), True


def _is_kept(old: Sequence[str], new: Sequence[str]) -> bool:
    """Return whether all old lines are among the new ones, in order."""
    rest = iter(new)
    return all(line in rest for line in old)


def _text(content: bytes | None) -> str:
    return "" if content is None else as_text(content) or ""


# -- settings of tests in files that hold other things too ----------------------------------------------------------


def _has_settings(name: str) -> bool:
    return name in ("pyproject.toml", "setup.cfg", "tox.ini", "package.json", *_MAKEFILES) or name.endswith(".mk")


def _of_settings(path: str, before: str, after: str, present: Collection[str]) -> ChangedTest | None:
    folder, name = posixpath.split(path)
    old, new = _settings(name, before), _settings(name, after)
    if old == new:
        return None
    if any(new.get(key) != value for key, value in old.items()):
        return ChangedTest(path, "deleted" if not after else "rewritten")
    # What is new may be a check of its own, a target or a script, that nothing used before. Settings are never that:
    # they hold for the tests that were there.
    added = set(new) - set(old)
    is_setting = any(not key.startswith(("target ", "script ", "variable ")) for key in added)
    switches = {key.partition(" ")[2] for key in added} & _MAKE_SWITCHES
    others = {posixpath.join(folder, other) for other in _MAKEFILES} - {path}
    in_the_way = bool(switches) or (is_setting and any(map(is_test, present)))
    hides = not before and name in _MAKEFILES and bool(others & set(present))
    return ChangedTest(path, "extended" if before else "added", in_the_way or hides)


def _settings(name: str, text: str) -> Mapping[str, str]:
    """Return what a file says about tests and checks, by name; texts that compare equal mean the same."""
    try:
        if name == "pyproject.toml":
            tool = tomllib.loads(text).get("tool", {})
            return {f"tool.{key}": _canonical(value) for key, value in tool.items() if key not in _PACKAGING}
        if name == "package.json":
            return _of_package(json.loads(text or "{}"))
        if name in ("setup.cfg", "tox.ini"):
            parser = configparser.RawConfigParser(strict=False)
            parser.read_string(text)
            return {one: _canonical(dict(parser[one])) for one in parser.sections() if _CHECKING_SECTIONS.match(one)}
    except (ValueError, AttributeError, configparser.Error):
        return {"": text}  # unreadable: then every change is one
    return _of_makefile(text)


def _of_package(content: Mapping[str, object]) -> Mapping[str, str]:
    scripts = content.get("scripts")
    found = {f"script {key}": _canonical(value) for key, value in scripts.items()} if isinstance(scripts, dict) else {}
    return {**found, **{key: _canonical(content[key]) for key in _CHECKING_KEYS if key in content}}


def _of_makefile(text: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if not line.startswith("\t") and (match := _MAKE_LINE.match(line)):
            key = f"target {match['target']}" if match["target"] else f"variable {match['variable']}"
        if line.strip() and key not in ("", "target .PHONY") and not line.startswith("#"):
            found[key] = f"{found.get(key, '')}{line.rstrip()}\n"
    return found


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _of_code(path: str, before: str, after: str) -> ChangedTest | None:
    """Rust's tests often stand in the file that they test; where they become fewer, it is seen here."""
    fewer = len(_RUST_TEST.findall(after)) < len(_RUST_TEST.findall(before))
    skipped = after.count("#[ignore") > before.count("#[ignore")
    if not fewer and not skipped:
        return None
    return ChangedTest(path, "deleted" if fewer else "skipped", protected=False, in_code=True)
