"""``mnemosyne demo`` and ``mnemosyne demo serve``: the whole way without a key, a network or a cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mnemosyne.cli.orchestrate import new_run
from mnemosyne.errors import InvalidInput

if TYPE_CHECKING:
    from mnemosyne.cli.options import Options
    from mnemosyne.cli.output import Output

__all__ = ["demo", "serve"]


def demo(options: Options, output: Output) -> int:
    """Run the sample's prompt in a copy of the sample.

    Raises:
        InvalidInput: The workspace holds something else than the sample (MN-0114), or the fault script cannot be used
            (MN-0115, MN-0160, MN-0161), or the run cannot be killed before our eyes (MN-0115).
    """
    from mnemosyne.demo.sample import DEMO_PROMPT

    if options.faults is not None:
        _use_faults(options)
    if options.kill is not None:
        from mnemosyne.cli.kill import killed_demo

        return killed_demo(options, output, lambda: _workspace(options.workspace))
    return new_run(DEMO_PROMPT, lambda: _workspace(options.workspace), options.model or "demo", options, output)


def serve(options: Options, output: Output) -> int:
    """Serve the demo model until interrupted.

    Raises:
        EnvironmentProblem: The port is taken, or the log cannot be written (MN-0211).
        InvalidInput: The fault script cannot be used (MN-0160, MN-0161).
    """
    from mnemosyne.demo.server import serve as serve_until_interrupted

    def listens(base_url: str) -> None:
        output.row("server", {"base_url": base_url}, [(base_url, 0, "")])

    serve_until_interrupted(options.port, options.log, options.faults, listens)
    return 0


def _use_faults(options: Options) -> None:
    from mnemosyne.demo import faults, launch

    if options.base_url is not None:
        raise InvalidInput(
            "--faults is for the server that the demo starts itself, and --base-url names another one",
            code="MN-0115",
            hint=f"mnemosyne demo serve --faults {options.faults}",
        )
    assert options.faults is not None
    faults.load(options.faults)  # refused here and not by the server, before anything is stored
    launch.configure(faults=options.faults)


def _workspace(given: Path | None) -> Path:
    from mnemosyne.demo.sample import copy_sample, free_directory, is_sample
    from mnemosyne.workspace import check_access

    if given is None:
        workspace = free_directory(Path.cwd())
    else:
        workspace = given.absolute()
        if workspace.is_dir():
            check_access(workspace)
        if (workspace.exists() or workspace.is_symlink()) and not is_sample(workspace):
            raise InvalidInput(
                f"the workspace {workspace} holds something else than the sample of the demo",
                code="MN-0114",
                reason="the demo never touches what is yours",
                hint="name a folder that is empty or does not exist, or use mnemosyne orchestrate for your own project",
            )
    try:
        copy_sample(workspace)
    except OSError as error:
        raise InvalidInput(
            f"the sample cannot be put into {workspace}",
            code="MN-0114",
            reason=error.strerror or str(error),
            hint="name a folder that you may write to, with --workspace",
        ) from error
    return workspace
