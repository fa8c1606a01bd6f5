"""The context pack: chosen by reading the task, capped, and the same every time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from mnemosyne.agents.optimizer import PACK_BYTES, build_pack, imported_files, named_in

FILES = {
    "shop/__init__.py": b"",
    "shop/cart.py": b"from shop import prices\nfrom .rules import discount\nimport os\n",
    "shop/prices.py": b"import json\n",
    "shop/rules.py": b"LIMIT = 3\n",
    "shop/unrelated.py": b"SECRET = 1\n",
    "src/lib/core.py": b"import lib.util\n",
    "src/lib/util.py": b"",
    "tests/__init__.py": b"",
    "tests/test_cart.py": b"import unittest\nfrom shop.cart import total\n",
    "tests/test_rules.py": b"import helper\n",
    "tests/helper.py": b"",
    "logo.png": b"\x89PNG\0",
    "notes.txt": "Grüße\n".encode(),
}


class Files:
    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    async def list_files(self) -> list[str]:
        return sorted(self.files)

    async def read_files(self, paths: Sequence[str]) -> dict[str, bytes]:
        return {path: self.files[path] for path in paths if path in self.files}


def order(pack: str) -> list[str]:
    return [line.split('"')[1] for line in pack.splitlines() if line.startswith("<file path=")]


async def test_a_pack_holds_the_scope_then_its_tests_then_what_they_import() -> None:
    pack = await build_pack(Files(FILES), scope=["shop/cart.py"], commands=["python3 -m unittest tests.test_cart"])
    assert order(pack) == ["shop/cart.py", "tests/test_cart.py", "shop/__init__.py", "shop/prices.py", "shop/rules.py"]
    assert '<file path="shop/rules.py">\nLIMIT = 3\n</file>' in pack


async def test_a_file_that_failing_output_names_is_in_the_pack_and_its_text_is_not() -> None:
    feedback = 'File "shop/unrelated.py", line 3: AssertionError: 3 != 4'
    pack = await build_pack(
        Files(FILES), scope=["notes.txt"], commands=[], feedback=feedback, earlier=["shop/rules.py"]
    )
    assert order(pack) == ["notes.txt", "shop/unrelated.py", "shop/rules.py"]
    assert "AssertionError" not in pack


async def test_a_pack_stays_under_its_cap_never_cuts_a_file_and_names_what_is_left_out() -> None:
    big = {f"d/{number:02}.txt": b"x" * 9_000 for number in range(12)}
    pack = await build_pack(Files({**big, "d/logo.png": b"\0", "d/99.txt": b"small\n"}), scope=["d"], commands=[])
    assert len(pack.encode()) <= PACK_BYTES
    assert "d/99.txt" in order(pack)
    assert len(order(pack)) == 8
    omitted = pack[pack.index("<omitted>") :]
    assert "d/11.txt" in omitted
    assert "d/logo.png" in omitted
    assert pack.count("x" * 9_000) == 7


async def test_the_same_task_gives_the_same_pack() -> None:
    packs = {await build_pack(Files(FILES), scope=["shop", "tests"], commands=["make test"]) for _ in range(3)}
    assert len(packs) == 1


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("python3 -m unittest tests.test_cart.CartTest.test_total -v", ["tests/test_cart.py"]),
        ("python -m pytest tests/test_rules.py::test_limit", ["tests/test_rules.py"]),
        ("python -m unittest discover -s ./shop", [path for path in sorted(FILES) if path.startswith("shop/")]),
        ("cargo test --all", []),
        ("echo 'unbalanced shop/cart.py", ["shop/cart.py"]),
        (". ./env && true", []),
    ],
)
def test_files_are_found_in_commands(command: str, found: list[str]) -> None:
    assert named_in(command, sorted(FILES)) == found


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("shop/cart.py", ["shop/__init__.py", "shop/prices.py", "shop/rules.py"]),
        ("src/lib/core.py", ["src/lib/util.py"]),
        ("tests/test_rules.py", ["tests/helper.py"]),
        ("notes.txt", []),
    ],
)
def test_imports_are_found_inside_the_project(path: str, found: list[str]) -> None:
    assert sorted(imported_files(path, FILES[path], set(FILES))) == found


@pytest.mark.parametrize("content", [b"def broken(:\n", b"\0", b"\xff\xfe"])
def test_a_file_that_is_no_python_imports_nothing(content: bytes) -> None:
    assert imported_files("shop/cart.py", content, set(FILES)) == []


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"from . import rules\n", ["shop/rules.py"]),
        (b"from ..tests import helper\n", ["tests/__init__.py", "tests/helper.py"]),
        (b"from .. import shop\n", ["shop/__init__.py"]),
        (b"from .rules import *\n", ["shop/rules.py"]),
    ],
)
def test_relative_imports_are_resolved(content: bytes, found: list[str]) -> None:
    assert set(found) <= set(imported_files("shop/cart.py", content, set(FILES))) <= {*found, "shop/__init__.py"}
