"""The bytes of an answer, watched: a stream that has begun must not fall silent.

Any byte counts, a ``ping`` and a comment that keeps a proxy awake included. What comes before the first byte is not
watched here: a small local model may read a long prompt for minutes, so only the read time limit of the connection
applies to it. Import this late, it imports httpx2.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx2

from mnemosyne.llm.turns import stalled

__all__ = ["Watched"]


class Watched(httpx2.AsyncByteStream):
    """A response's stream that ends with a ``TurnError`` when nothing comes for ``seconds`` after it has begun."""

    def __init__(self, stream: httpx2.AsyncByteStream, seconds: float) -> None:
        self._stream = stream
        self._seconds = seconds

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = aiter(self._stream)
        patience: float | None = None
        while True:
            try:
                async with asyncio.timeout(patience):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise stalled(f"no byte came for {self._seconds:g} s in the middle of the answer") from None
            yield chunk
            patience = self._seconds

    async def aclose(self) -> None:
        await self._stream.aclose()
