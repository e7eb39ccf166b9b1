"""How long a connection may take: no client keeps one busy by sending slowly, or by not reading."""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_WITHIN_S: Final = 10.0
ANSWER_WITHIN_S: Final = 60.0


class TimeLimitedProtocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it with h11, which bounds what it reads before a request is complete.

    A connection is closed if a request is not whole after ten seconds, or its answer not taken after a minute more.
    """

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._allow(REQUEST_WITHIN_S)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._limit is not None:
            self._limit.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._allow(REQUEST_WITHIN_S)

    def _allow(self, seconds: float) -> None:
        if self._limit is not None:
            self._limit.cancel()
        self._limit = self.loop.call_later(seconds, self._expired, seconds)

    def _expired(self, allowed: float) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        if answering and allowed == REQUEST_WITHIN_S:
            self._allow(ANSWER_WITHIN_S)
        else:
            self.transport.abort()
