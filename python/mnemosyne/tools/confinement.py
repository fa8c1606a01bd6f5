"""The one place that decides whether a path lies in the tree."""

from __future__ import annotations

from pathlib import Path

__all__ = ["OutsideTreeError", "inside"]


class OutsideTreeError(Exception):
    """A path that leads out of the tree (MN-0601); nothing was done with it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"MN-0601: {name!r} is outside the tree; use a path relative to the root of the project")


def inside(tree: Path, name: str) -> Path:
    """Return the real path that ``name`` stands for, with every link followed.

    Args:
        tree: The resolved root.
        name: Relative to the root; an absolute path is fine if it leads into the tree.

    Raises:
        OutsideTreeError: It leads out: by ``..``, as an absolute path, or through a link of the file or of any folder.
        ValueError: It is no path at all.
    """
    if not name or "\0" in name:
        raise ValueError("a path must not be empty or hold a zero byte")
    try:
        path = (tree / name).resolve()
    except (OSError, RuntimeError) as error:
        # A loop of links: wherever it leads, it is not in the tree.
        raise OutsideTreeError(name) from error
    if not path.is_relative_to(tree):
        raise OutsideTreeError(name)
    return path
