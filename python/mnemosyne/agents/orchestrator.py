"""The Orchestrator: a request becomes a specification, a full specification, and a plan.

Each is a typed artifact that the next phase reads. What a schema cannot say about a plan (that its tasks can be
ordered, that its commands can fail) is checked here and told to the model once, before the store refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from mnemosyne.agents import prompts
from mnemosyne.agents.claude_agent import ClaudeAgent, item_context
from mnemosyne.errors import InvalidInput
from mnemosyne.llm import structured
from mnemosyne.models import AgentRole, Phase, Plan
from mnemosyne.validation import validate_work_plan

__all__ = ["Component", "FullSpec", "OrchestratorAgent", "Requirement", "Spec", "TestPlanEntry", "plan_problems"]

Document = TypeVar("Document", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Requirement(_Strict):
    """One observable behaviour."""

    id: str = Field(min_length=1, description="R1, R2, ...")
    text: str = Field(min_length=1)


class Spec(_Strict):
    """What is asked for."""

    summary: str = Field(min_length=1)
    requirements: list[Requirement] = Field(min_length=1)
    open_questions: list[str] = Field(description="Questions the request leaves open, each with the reading taken.")
    acceptance: list[str] = Field(description="What shows that the request as a whole is met.")


class Component(_Strict):
    """A part of the project that the request touches."""

    name: str = Field(min_length=1)
    files: list[str]
    responsibility: str
    requirements: list[str] = Field(description="Ids of the requirements it serves.")


class TestPlanEntry(_Strict):
    """How one requirement is proved."""

    __test__ = False  # not a test class, whatever pytest reads into its name

    requirement: str = Field(description="Id of the requirement.")
    command: str = Field(min_length=1, description="Shell command.")


class FullSpec(_Strict):
    """How it is to be built and proved."""

    components: list[Component] = Field(min_length=1)
    constraints: list[str]
    test_plan: list[TestPlanEntry]


class OrchestratorAgent(ClaudeAgent):
    """Plays the first three phases."""

    role: ClassVar[AgentRole] = AgentRole.ORCHESTRATOR

    async def execute_work(self, work_dict: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Return ``data`` with ``spec``, ``full_spec`` or ``plan``, by the item's phase."""
        context = item_context(work_dict)
        match work_dict.get("phase"):
            case Phase.PROMPT_TO_SPEC:
                return await self._write("spec", Spec, prompts.prompt_to_spec(context), _spec_problems)
            case Phase.SPEC_TO_FULL_SPEC:
                check_full = _full_spec_check(context.get("spec"))
                return await self._write("full_spec", FullSpec, prompts.spec_to_full_spec(context), check_full)
            case Phase.FULL_SPEC_TO_PLAN:
                check_plan = _plan_check(context.get("spec"))
                return await self._write("plan", Plan, prompts.full_spec_to_plan(context), check_plan)
            case other:
                raise InvalidInput(f"the Orchestrator has no work in phase {other!r}", code="MN-0117")

    async def _write(
        self, key: str, output: type[Document], prompt: str, check: Callable[[Document], list[str]]
    ) -> dict[str, JsonValue]:
        answer = await structured(
            self.client,
            self.context,
            model=self.model,
            system=prompts.ORCHESTRATOR,
            prompt=prompt,
            output=output,
            check=check,
            retry=self.retry,
        )
        return {
            "success": True,
            "data": {key: answer.value.model_dump(mode="json")},
            "usage": answer.usage.model_dump(mode="json"),
        }


def _spec_problems(spec: Spec) -> list[str]:
    names = [requirement.id for requirement in spec.requirements]
    problems = [f"requirement id {name} is used more than once" for name in _repeated(names)]
    # A task names its requirements in its text, so an id has to be one word there.
    return problems + [f"requirement id {name!r} is not one word like R1" for name in names if _words(name) != {name}]


def _requirement_ids(spec: JsonValue) -> set[str]:
    requirements = spec.get("requirements") if isinstance(spec, dict) else None
    entries = requirements if isinstance(requirements, list) else []
    return {str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry}


def _words(text: str) -> set[str]:
    """Split as ``rust/core/src/advance.rs`` does, which gives a task the requirements that its text names."""
    return set(re.findall(r"(?:[^\W_]|[-_])+", text))


def _full_spec_check(spec: JsonValue) -> Callable[[FullSpec], list[str]]:
    known = _requirement_ids(spec)

    def check(full: FullSpec) -> list[str]:
        named = {name for part in full.components for name in part.requirements} | {
            t.requirement for t in full.test_plan
        }
        return [f"there is no requirement {name}" for name in sorted(named - known)] if known else []

    return check


def _plan_check(spec: JsonValue) -> Callable[[Plan], list[str]]:
    known = _requirement_ids(spec)

    def check(plan: Plan) -> list[str]:
        named = known & {word for task in plan.tasks for word in _words(f"{task.title} {task.description}")}
        # Where no task names any, each task is judged as a whole; named in part, the others would be judged by nobody.
        left_out = sorted(known - named) if named else []
        return plan_problems(plan) + [f"no task names requirement {name} in its description" for name in left_out]

    return check


def plan_problems(plan: Plan) -> list[str]:
    """Return what is wrong with ``plan`` beyond its form, each as one sentence; empty if it can be carried out."""
    report = validate_work_plan(plan)
    # A plan of ours names its files: a task without a scope runs alone, which only a person may want.
    left_open = [
        f"tasks[{at}].file_scope: task {task.id} has an empty file_scope: name the paths that it may change"
        for at, task in enumerate(plan.tasks)
        if not task.file_scope
    ]
    return [*map(str, report.errors), *left_open]


def _repeated(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})
