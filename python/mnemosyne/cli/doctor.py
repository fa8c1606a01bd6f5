"""``mnemosyne doctor``: is everything there that a run needs? One line for each check, and its fix where it fails."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from mnemosyne.cli.inputs import store_path
from mnemosyne.cli.style import one_line
from mnemosyne.errors import EnvironmentProblem

if TYPE_CHECKING:
    from mnemosyne.cli.options import Options
    from mnemosyne.cli.output import Output

__all__ = ["doctor"]


def doctor(options: Options, output: Output) -> int:
    """Run the verb.

    Raises:
        EnvironmentProblem: A check failed (MN-0630).
    """
    from mnemosyne.config.environment import check_environment
    from mnemosyne.redaction import redact

    checks = check_environment(store_path(options), base_url=options.base_url, key_file=options.api_key_file)
    for check in checks:
        mark, colour = ("✓", "good") if check.ok else ("✗", "bad")
        form = {name: redact(value) if isinstance(value, str) else value for name, value in asdict(check).items()}
        output.row("check", form, [(mark, 2, colour), (check.name, 15, ""), (one_line(form["detail"]), 0, "")])
        if not check.ok:
            output.text([f"  fix: {one_line(form['fix'])}"])
    failed = [check.name for check in checks if not check.ok]
    if failed:
        raise EnvironmentProblem(
            f"{len(failed)} of {len(checks)} checks failed",
            code="MN-0630",
            reason=", ".join(failed),
            hint="do what the lines above say, then run mnemosyne doctor again",
        )
    output.text(["everything is there"])
    return 0
