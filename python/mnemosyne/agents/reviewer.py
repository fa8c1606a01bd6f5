"""The Reviewer: judges a commit whose gates are green, requirement by requirement.

It is asked only after the commands of the task were seen red on the base and green on the commit, by us. So it can
lower the verdict and never raise it (TRUTH-1): no word of a model turns a red gate green.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from mnemosyne.agents import prompts
from mnemosyne.agents.claude_agent import ClaudeAgent, item_context
from mnemosyne.llm import structured
from mnemosyne.models import AgentRole

__all__ = ["LOWEST_CONFIDENCE", "Judgement", "RequirementJudgement", "ReviewerAgent", "lowered"]

LOWEST_CONFIDENCE = 0.5
"""A pass that the reviewer itself believes in less than this is none."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RequirementJudgement(_Strict):
    """The judgement of one requirement."""

    id: str
    met: bool
    reason: str


class Judgement(_Strict):
    """The judgement of a change."""

    passed: bool
    confidence: float = Field(ge=0, le=1)
    feedback: str
    requirements: list[RequirementJudgement]
    start_over: bool = Field(
        default=False, description="Of a rejection: the next attempt is to begin without this change."
    )


class ReviewerAgent(ClaudeAgent):
    """Reads the diff and the evidence."""

    role: ClassVar[AgentRole] = AgentRole.REVIEWER

    async def execute_work(self, work_dict: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Return ``data`` with ``passed``, ``confidence``, ``feedback``, ``requirements`` and ``start_over``."""
        context, task = item_context(work_dict), self.context.task
        answer = await structured(
            self.client,
            self.context,
            model=self.model,
            system=prompts.REVIEWER,
            prompt=prompts.review(
                context,
                task=task.id if task is not None else str(work_dict.get("id", "")),
                title=task.title if task is not None else str(work_dict.get("description", "")),
                description=task.description if task is not None else "",
            ),
            output=Judgement,
            retry=self.retry,
        )
        judgement = answer.value.model_dump(mode="json")
        return {
            "success": True,
            "data": lowered(judgement, context.get("requirements")),
            "usage": answer.usage.model_dump(mode="json"),
        }


def lowered(judgement: dict[str, JsonValue], requirements: JsonValue) -> dict[str, JsonValue]:
    """Return ``judgement`` with ``passed`` false where its own parts contradict a pass, and feedback that says why.

    Args:
        requirements: ``[{"id", ...}]``; one that was not judged counts as not met. Other forms ask for nothing.
    """
    judged = judgement.get("requirements")
    entries = [entry for entry in judged if isinstance(entry, dict)] if isinstance(judged, list) else []
    asked = requirements if isinstance(requirements, list) else []
    names = [str(entry["id"]) for entry in asked if isinstance(entry, dict) and "id" in entry]
    against = [
        f"{entry.get('id')}: {entry.get('reason') or 'not met'}" for entry in entries if entry.get("met") is not True
    ]
    against += [f"{name}: it was not judged" for name in names if name not in {entry.get("id") for entry in entries}]
    confidence = judgement.get("confidence")
    if isinstance(confidence, int | float) and confidence < LOWEST_CONFIDENCE:
        against.append(f"the reviewer's confidence was {confidence}")
    passed = judgement.get("passed") is True and not against
    said = judgement.get("feedback")
    feedback = said if isinstance(said, str) else ""
    if not passed:
        missing = [line for line in against if line not in feedback]
        feedback = (
            "\n".join(part for part in (feedback, *missing) if part) or "the reviewer rejected it without a reason"
        )
    start_over = judgement.get("start_over") is True and not passed
    return {**judgement, "passed": passed, "feedback": feedback, "start_over": start_over}
