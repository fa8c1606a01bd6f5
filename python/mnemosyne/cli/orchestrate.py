"""``mnemosyne orchestrate``: a prompt or a plan becomes accepted files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mnemosyne.cli import inputs
from mnemosyne.cli.drive import Job, drive
from mnemosyne.errors import InvalidInput

if TYPE_CHECKING:
    from mnemosyne.cli.options import Options
    from mnemosyne.cli.output import Output
    from mnemosyne.models import Budget, Plan
    from mnemosyne.orchestra import Orchestra, Run

__all__ = ["new_run", "orchestrate"]


def orchestrate(options: Options, output: Output) -> int:
    """Run the verb.

    Raises:
        InvalidInput: Something that the user gave cannot be used; nothing was stored.
    """
    if options.plan is not None and options.prompt is not None:
        raise InvalidInput(
            "a prompt and a plan were given",
            code="MN-0115",
            reason="with a plan the phases that a prompt is for are skipped",
            hint="give one of them",
        )
    goal: str | Plan
    if options.plan is None:
        goal = inputs.read_prompt(options.prompt)
    else:
        goal, warnings = inputs.read_plan(options.plan)
        if not options.quiet:
            output.warn(warnings)
    return new_run(goal, lambda: _workspace(options), options.model, options, output)


def new_run(goal: str | Plan, place: Callable[[], Path], model: str | None, options: Options, output: Output) -> int:
    """Check what is left to check, submit, and follow the run to its end; ``demo`` comes here as well.

    Args:
        goal: The prompt or the plan.
        place: Returns the workspace; asked last, since it may have to make it, and bad input leaves nothing behind.
        model: The model for all roles, or None for each role's default.
        options: The command line.
        output: Where to show it.
    """
    from mnemosyne.config.settings import check_base_url

    agents = inputs.read_agents(options.agent)
    budget = inputs.read_budget(options, model)
    base_url = None if options.base_url is None else check_base_url(options.base_url)
    api_key = inputs.read_key(options.api_key_file, base_url, model)
    store = inputs.store_path(options)
    workspace = place()
    if agents:
        inputs.find_modules_from_here()
    _tell(output, workspace, model, budget)

    async def start(orchestra: Orchestra) -> Run:
        return await orchestra.submit(goal, workspace=workspace, budget=budget)

    job = Job(
        store=store,
        agents=agents,
        model=model,
        base_url=base_url,
        api_key=api_key,
        max_concurrent=options.max_concurrent,
        start=start,
    )
    return drive(job, options, output)


def _workspace(options: Options) -> Path:
    from mnemosyne.workspace import check_workspace

    workspace = (options.workspace or Path.cwd()).absolute()
    check_workspace(workspace)
    return workspace


def _tell(output: Output, workspace: Path, model: str | None, budget: Budget | None) -> None:
    output.about.workspace = str(workspace)
    output.about.model = model
    output.about.demo = model == "demo"
    output.about.budget = budget
