"""What the agents that think with Claude have in common: a client of their own, and which model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import JsonValue

from mnemosyne.agents.base_agent import AgentExecutionMixin
from mnemosyne.errors import EnvironmentProblem, InvalidInput
from mnemosyne.llm import Client, RetryPolicy
from mnemosyne.llm.prices import default_model
from mnemosyne.models import AgentRole

__all__ = ["ClaudeAgent", "item_context"]


class ClaudeAgent(AgentExecutionMixin):
    """An agent with a client, made on first use: a new object after a restart has a new connection too."""

    role: ClassVar[AgentRole]
    retry: RetryPolicy = RetryPolicy()
    _client: Client | None = None

    @property
    def settings(self) -> Mapping[str, JsonValue]:
        """``config``; an agent that another one made without naming a server or key talks to the other one's.

        Never half of each: the user's key must not go to a server that somebody else named (SECRET-1).
        """
        if any(name in self.config for name in ("base_url", "api_key", "profile")):
            return self.config
        return {**self.context.config, **self.config}

    @property
    def client(self) -> Client:
        """The client, for the server and key of ``settings``."""
        if self._client is None:
            try:
                self._client = Client(self.settings)
            except InvalidInput as error:
                # A wrong setting is neither the item's fault nor the agent's: the run waits until it is corrected.
                raise EnvironmentProblem(
                    error.message, code=error.code, reason=error.reason, hint=error.hint
                ) from error
        return self._client

    @property
    def model(self) -> str:
        """The model: the agent's own setting, else the run's, else the default of the role."""
        run = self.context.run
        for named in (self.settings.get("model"), run.options.get("model") if run is not None else None):
            if isinstance(named, str) and named:
                return named
        return default_model(self.role)

    async def find_key(self) -> None:
        """Look for the key before the first work, so that an agent that would have none is not started (DOWN-1).

        Raises:
            EnvironmentProblem: There is none (MN-0201), or it cannot be read.
        """
        if self._client is None:
            self._client = Client(self.config)  # not ``settings``: there is no work yet that it could be for
        await self._client.find_key()

    async def close(self) -> None:
        """Close the connections; on the loop that the work ran on."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()


def item_context(work_dict: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the context of a work item; an item without one has an empty one."""
    context = work_dict.get("context")
    return context if isinstance(context, dict) else {}
