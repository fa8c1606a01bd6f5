"""A small project with a real bug and a test that shows it, for tests of trees and gates."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mnemosyne.workspace import Tree, Workspace

__all__ = ["FILES", "FIXED", "Files", "change", "snapshot", "write"]

Files = Mapping[str, str | bytes | None]

FILES: Files = {
    "README.md": "a sample\n",
    "src/calc.py": "def add(a, b):\n    return a - b\n",
    "src/other.py": "VALUE = 1\n",
    "tests/test_calc.py": (
        "import sys\nsys.path.insert(0, 'src')\nfrom calc import add\nassert add(2, 2) == 4, add(2, 2)\n"
    ),
    "run.sh": "#!/bin/sh\necho run\n",
}
FIXED: Files = {"src/calc.py": "def add(a, b):\n    return a + b\n"}


def write(folder: Path, files: Files) -> None:
    """Write files; None removes one."""
    for name, content in files.items():
        path = folder / name
        if content is None:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def snapshot(folder: Path) -> dict[str, tuple[str, bool, bytes]]:
    """Everything below a folder: kind, executable bit, content; folders too, so that an empty one is seen."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = ("link", False, os.readlink(path).encode())
        elif path.is_dir():
            found[name] = ("folder", False, b"")
        else:
            found[name] = ("file", bool(path.stat().st_mode & 0o100), path.read_bytes())
    return found


async def change(workspace: Workspace, files: Files, *, task: str = "t1", attempt: int = 1) -> tuple[Tree, str]:
    """An attempt that changes these files; its tree and its commit."""
    tree = await workspace.create_tree(task, attempt)
    write(tree.path, files)
    commit, _ = await workspace.commit_tree(tree, f"{task}")
    return tree, commit
