"""The Executor: Claude with tools, in the tree of one attempt.

It says when it believes it is done. Whether it is, the gates say.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import JsonValue

from mnemosyne.agents import prompts
from mnemosyne.agents.claude_agent import ClaudeAgent, item_context
from mnemosyne.errors import AgentError
from mnemosyne.llm import ClaudeSession, ResultMessage, SessionOptions
from mnemosyne.models import AgentRole

__all__ = ["ExecutorAgent"]

MAX_TURNS = 40


class ExecutorAgent(ClaudeAgent):
    """Carries out one task."""

    role: ClassVar[AgentRole] = AgentRole.EXECUTOR

    async def execute_work(self, work_dict: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Return ``data`` with the model's ``summary``; the harness adds the commit."""
        context = self.context
        if context.tools is None:
            raise AgentError(
                "the Executor has no tree to work in",
                code="MN-0312",
                reason="the item was not given one",
                hint='for direct work, name a folder in the item\'s context: {"tree": "/path"}',
            )
        turn_limit = self.config.get("max_turns")
        options = SessionOptions(
            self.model,
            prompts.EXECUTOR,
            tools=context.tools,
            max_turns=turn_limit if isinstance(turn_limit, int) else MAX_TURNS,
            retry=self.retry,
            progress=context.progress,
        )
        async with ClaudeSession(self.client, context, options) as session:
            await session.query(self._prompt(work_dict))
            async for message in session.receive_response():
                if isinstance(message, ResultMessage):
                    return _result(message)
        raise AssertionError("a response ends with a ResultMessage")

    def _prompt(self, work_dict: dict[str, JsonValue]) -> str:
        item, task = self.context.item, self.context.task
        return prompts.execute(
            item_context(work_dict),
            task=task.id if task is not None else item.id,
            title=task.title if task is not None else item.description,
            description=task.description if task is not None else "",
            scope=task.file_scope if task is not None else item.file_scope,
            attempt=self.context.attempt,
            setup=self.context.setup,
        )


def _result(message: ResultMessage) -> dict[str, JsonValue]:
    usage = message.usage.model_dump(mode="json")
    if message.is_error:
        error = f"turn limit used up (MN-0406): {message.turns} turns without a final answer"
        return {"success": False, "data": {"summary": ""}, "error": error, "usage": usage}
    return {"success": True, "data": {"summary": message.text.strip()}, "usage": usage}
