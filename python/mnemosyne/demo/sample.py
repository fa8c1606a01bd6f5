"""The sample project of the demo, and the folders it may be put into."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

from mnemosyne.errors import InvalidInput

__all__ = ["DEMO_PROMPT", "copy_sample", "free_directory", "is_sample"]

DEMO_PROMPT = "Please finish the unfinished functions of this little project, so that all of its tests pass."

_SAMPLE = Path(__file__).with_name("sample")
_NAME = "mnemosyne-demo"
_IGNORED = frozenset({"__pycache__", ".git"})


def free_directory(parent: Path) -> Path:
    """Return ``parent/mnemosyne-demo``, or the first of ``-2``, ``-3``... that does not exist or is empty."""
    names = itertools.chain([_NAME], (f"{_NAME}-{number}" for number in itertools.count(2)))
    return next(path for path in (parent / name for name in names) if _is_free(path))


def copy_sample(target: Path) -> list[Path]:
    """Put the sample into ``target``; a file that is there stays as it is.

    Returns:
        The files that were written.

    Raises:
        InvalidInput: ``target`` holds something else (MN-0114); nothing was written.
    """
    if (target.exists() or target.is_symlink()) and not is_sample(target):
        raise InvalidInput(
            "the workspace of the demo holds something else than its sample",
            code="MN-0114",
            reason=str(target),
            hint="name a folder that is empty or does not exist, or use `mnemosyne orchestrate` for your own project",
        )
    written = []
    for path, content in _files(_SAMPLE):
        file = target / path
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            written.append(file)
    return written


def is_sample(directory: Path) -> bool:
    """Whether ``directory`` holds nothing but files of the sample, finished or not.

    A finished file is one that differs only in the bodies of its functions. An empty directory holds nothing foreign.
    """
    if not directory.is_dir():
        return False
    ours = dict(_files(_SAMPLE))
    try:
        return all(path in ours and _is_same_but_for_bodies(content, ours[path]) for path, content in _files(directory))
    except OSError:
        return False


def _is_free(path: Path) -> bool:
    if path.is_symlink():
        return False
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _files(root: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file below ``root`` with its content; links are followed nowhere and count as empty files."""
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if _IGNORED.isdisjoint(relative.parts) and (path.is_symlink() or not path.is_dir()):
            yield relative, b"" if path.is_symlink() or not path.is_file() else path.read_bytes()


def _is_same_but_for_bodies(content: bytes, original: bytes) -> bool:
    if content == original:
        return True
    try:
        return b"NotImplementedError" in original and _skeleton(content) == _skeleton(original)
    except (SyntaxError, ValueError):
        return False


def _skeleton(source: bytes) -> str:
    """The file without the bodies of its functions; docstrings stay, since they are the rules."""
    tree = ast.parse(source)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            node.body = node.body[:1]
    return ast.dump(tree)
