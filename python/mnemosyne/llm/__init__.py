"""The way to the model, and the only importer of ``anthropic`` (lazily: the import costs 0.75 s and 60 MB).

``client`` sends one request and reads one answer; ``retry`` asks up to three times and journals each try;
``session`` holds a conversation with tools, ``compaction`` shortens one that does not fit any more, ``transcript``
reads one out of a journal; ``structured`` gets a pydantic model out of one; ``prices`` knows what it costs. Nothing
here knows an agent, a tree or a store: the journal and the tools are protocols.
"""

from __future__ import annotations

from mnemosyne.llm.client import Client, prefetch
from mnemosyne.llm.retry import Journal, RetryPolicy
from mnemosyne.llm.session import AssistantMessage, ClaudeSession, ResultMessage, SessionOptions, ToolMessage, Tools
from mnemosyne.llm.structured import Structured, structured
from mnemosyne.llm.turns import Turn, TurnError

__all__ = [
    "AssistantMessage",
    "ClaudeSession",
    "Client",
    "Journal",
    "ResultMessage",
    "RetryPolicy",
    "SessionOptions",
    "Structured",
    "ToolMessage",
    "Tools",
    "Turn",
    "TurnError",
    "prefetch",
    "structured",
]
