"""What is a test, and what a change did to one: by name and text alone."""

from __future__ import annotations

import pytest
from mnemosyne.testfiles import changed_test, holds_only_tests, is_test, may_hold_tests

PRESENT = frozenset({"src/main.py", "tests/test_main.py", "pyproject.toml", "Makefile"})


@pytest.mark.parametrize(
    "path",
    [
        "tests/test_main.py",
        "test_main.py",
        "pkg/main_test.go",
        "web/cart.test.tsx",
        "web/cart.spec.ts",
        "a/__tests__/x.js",
        "spec/cart_spec.rb",
        "src/test/java/CartTest.java",
        "tests/data/input.json",
        "conftest.py",
        "pytest.ini",
        "app/tests.py",
        "jest.config.ts",
        ".eslintrc.json",
        "ruff.toml",
        "web/__snapshots__/a.snap",
        "src/parser/tests.rs",
        "check.bats",
    ],
)
def test_what_test_runners_find_or_read_is_a_test(path: str) -> None:
    assert is_test(path)


@pytest.mark.parametrize(
    "path", ["src/main.py", "latest/x.py", "contest.py", "testing/tools.py", "attest.go", "src/protest.rs", "README.md"]
)
def test_what_only_sounds_like_a_test_is_none(path: str) -> None:
    assert not is_test(path)


def test_a_scope_of_tests_is_one_without_anything_else() -> None:
    assert holds_only_tests(["tests/", "src/test_main.py"])
    assert not holds_only_tests(["tests", "src"])
    assert not holds_only_tests([]), "without a scope everything may be changed"


def test_a_scope_has_room_for_tests_unless_it_names_files_that_are_none() -> None:
    assert not may_hold_tests(["src/main.py"], PRESENT)
    assert not may_hold_tests(["src/main.py", "src/new.py"], PRESENT)
    for scope in ([], ["."], ["src"], ["src/main.py", "pyproject.toml"], ["src/main.py", "test_new.py"]):
        assert may_hold_tests(scope, PRESENT), scope


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (None, "x", "added"),
        ("x", None, "deleted"),
        ("a\nb\n", "a\nb\nc\n", "extended"),
        ("a\nb\n", "0\na\nb\n", "extended"),
        ("a\nb\n", "a\n", "rewritten"),
        ("a\nb\n", "b\na\n", "rewritten"),
        ("def test_a():\n", "@pytest.mark.skip\ndef test_a():\n", "skipped"),
        ("it('a', () => 1)\n", "it.skip('a', () => 1)\n", "skipped"),
        ("fn a() {}\n", "#[ignore]\nfn a() {}\n", "skipped"),
    ],
)
def test_what_a_change_did_to_a_test_is_told_in_one_word(before: str | None, after: str | None, change: str) -> None:
    found = changed_test(
        "tests/test_main.py", *(None if text is None else text.encode() for text in (before, after)), PRESENT
    )
    assert found is not None
    assert (found.change, found.protected) == (change, change != "added")


@pytest.mark.parametrize(
    ("path", "before", "after", "change", "protected"),
    [
        ("pyproject.toml", "[project]\nname = 'a'\n", "[project]\nname = 'b'\n", None, False),
        ("pyproject.toml", "[tool.poetry]\nversion = '1'\n", "[tool.poetry]\nversion = '2'\n", None, False),
        ("pyproject.toml", "[project]\n", "[tool.pytest.ini_options]\naddopts = '-k nothing'\n", "extended", True),
        ("pyproject.toml", "[tool.ruff]\nselect = ['E']\n", "[tool.ruff]\nselect = []\n", "rewritten", True),
        ("setup.cfg", "[metadata]\nname = a\n", "[metadata]\nname = b\n", None, False),
        ("setup.cfg", "[tool:pytest]\naddopts = -q\n", "[metadata]\nname = a\n", "rewritten", True),
        ("package.json", '{"scripts": {"test": "jest"}}', '{"scripts": {"test": "true"}}', "rewritten", True),
        (
            "package.json",
            '{"scripts": {"test": "jest"}}',
            '{"scripts": {"test": "jest", "size": "x"}}',
            "extended",
            False,
        ),
        ("package.json", '{"version": "1"}', '{"version": "2", "dependencies": {"a": "1"}}', None, False),
        ("Makefile", "test:\n\tpytest\n", "test:\n\ttrue\n", "rewritten", True),
        ("Makefile", "test:\n\tpytest\n", "test:\n\tpytest\nsize:\n\twc -l x\n", "extended", False),
        ("Makefile", ".PHONY: test\ntest:\n\tx\n", ".PHONY: test size\ntest:\n\tx\nsize:\n\ty\n", "extended", False),
        ("Makefile", "test:\n\tpytest\n", "SHELL = /bin/true\ntest:\n\tpytest\n", "extended", True),
        ("Makefile", "X = 1\ntest:\n\tpytest $(X)\n", "X = --co\ntest:\n\tpytest $(X)\n", "rewritten", True),
        ("src/lib.rs", "#[test]\nfn a() {}\n", "fn a() {}\n", "deleted", False),
        ("src/lib.rs", "fn a() {}\n", "fn b() {}\n", None, False),
    ],
)
def test_of_files_that_hold_other_things_too_only_what_concerns_tests_counts(
    path: str, before: str, after: str, change: str | None, protected: bool
) -> None:
    found = changed_test(path, before.encode(), after.encode(), PRESENT)
    assert (found and found.change, bool(found and found.protected)) == (change, protected)


def test_a_new_file_of_settings_is_in_the_way_only_of_tests_that_were_there() -> None:
    for present, expected in ((PRESENT, True), (frozenset({"src/main.py"}), False)):
        found = changed_test("pytest.ini", None, b"[pytest]\naddopts = -k nothing\n", present)
        assert found is not None
        assert found.protected is expected
    for text, expected in (
        (b"import pytest\n\n@pytest.fixture\ndef one():\n    return 1\n", False),
        (b"collect_ignore = ['test_main.py']\n", True),
        (b"def pytest_collection_modifyitems(items):\n    items.clear()\n", True),
    ):
        found = changed_test("tests/conftest.py", None, text, PRESENT)
        assert found is not None
        assert found.protected is expected, text
    shadow = changed_test("GNUmakefile", None, b"test:\n\ttrue\n", PRESENT)
    assert shadow is not None
    assert shadow.protected, "make reads it in the place of the one that is there"
