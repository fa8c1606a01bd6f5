"""``mnemosyne completion``: a script that makes a shell complete verbs and flags, made from the parser itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnemosyne.cli.options import Options
    from mnemosyne.cli.output import Output

__all__ = ["completion"]


def completion(options: Options, output: Output) -> int:
    """Print the script for one shell; ``eval "$(mnemosyne completion bash)"`` puts it to use."""
    import shtab

    from mnemosyne.cli.options import new_parser

    script = shtab.complete(new_parser(), shell=options.shell)
    output.block("completion", {"shell": options.shell, "script": script}, script.splitlines())
    return 0
