"""The files of one accepted commit, for an Optimizer to read: out of the shadow repository, without a checkout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mnemosyne.errors import EnvironmentProblem

if TYPE_CHECKING:
    from mnemosyne.guard import Guard

__all__ = ["CommittedFiles"]

_OUTPUT_BYTES = 64_000_000
_ENVIRONMENT = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}


class CommittedFiles:
    """A commit never changes, so what is read here does not depend on when it is read.

    Args:
        directory: The run's directory; its shadow repository is ``git`` in it.
        tag: The claim in whose name git runs.
    """

    def __init__(self, guard: Guard, directory: Path, commit: str, *, tag: str | None = None) -> None:
        self._guard = guard
        self._directory = directory
        self._commit = commit
        self._tag = tag

    async def list_files(self) -> list[str]:
        """Return all paths, relative and sorted, but links and submodules, which are no files, and names that are not
        UTF-8, which a prompt cannot hold.
        """
        output = await self._git("ls-tree", "-r", "-z", self._commit)
        entries = (line.partition(b"\t") for line in output.split(b"\0") if line)
        files = (name.decode("utf-8", "replace") for head, _, name in entries if head.startswith(b"100"))
        return sorted(name for name in files if "\N{REPLACEMENT CHARACTER}" not in name)

    async def read_files(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Return the contents of those that exist."""
        asked = [path for path in paths if "\n" not in path]  # the request is made of lines
        lines = [f"{self._commit}:{path}\n".encode() for path in asked]
        if not lines:
            return {}
        output = await self._git("cat-file", "--batch", stdin=b"".join(lines))
        contents: dict[str, bytes] = {}
        position = 0
        for path in asked:
            end = output.index(b"\n", position)
            header, position = output[position:end], end + 1
            if header.endswith(b" missing"):
                continue
            size = int(header.rsplit(b" ", 1)[1])
            if b" blob " in header:
                contents[path] = output[position : position + size]
            position += size + 1
        return contents

    async def _git(self, *arguments: str, stdin: bytes = b"") -> bytes:
        result = await self._guard.run(
            ["git", "--git-dir", str(self._directory / "git"), *arguments],
            cwd=self._directory,
            env={**self._guard.environment(), **_ENVIRONMENT},
            stdin=stdin,
            output_limit=_OUTPUT_BYTES,
            tag=self._tag,
        )
        if result.exit_code != 0 or result.truncated:
            raise EnvironmentProblem(
                "git cannot read the accepted files",
                code="MN-0254",
                reason=result.output[-500:] or "it printed more than can be kept",
                hint="look for a full disk or missing permissions, then `mnemosyne resume`",
            )
        return result.stdout
