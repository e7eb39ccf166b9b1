"""One request to a cluster and its answer, made by either product's official client.

Everything beside this file knows paths, bodies and answers, and no client; a client knows connections, credentials
and TLS, and neither. What differs between the products is in `Product`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, Protocol
from urllib.parse import quote, urlencode

import orjson

_AS_WRITTEN: Final = ContextVar("numbers stay as they were written", default=False)


class Answer(NamedTuple):
    """What came back: the status, and the JSON that was read (text where it was none)."""

    status: int
    body: Any


class Refused(Exception):
    """An answer that says no: an error status, or an answer of another product."""

    def __init__(self, status: int, body: Any, message: str | None = None) -> None:
        super().__init__(message or str(body))
        self.status, self.body = status, body


class Missing(Refused):
    """404: nothing has that name."""


class Unanswered(Exception):
    """No answer that could be read. `kind`: its error type; `connection`: what was left of it.

    `none` could be made, so nothing was sent; `lost` after it was made: the request may have been carried out;
    `kept`, but the answer was late or unreadable.
    """

    def __init__(self, kind: str, message: str, connection: Literal["none", "lost", "kept"] = "kept") -> None:
        super().__init__(message)
        self.kind, self.connection = kind, connection


FAILURES = (Refused, Unanswered)
"""What a request raises."""


def read_json(text: bytes | str) -> Any:
    """An answer as the clients are to read it: with Python's own parser, in which large integers stay exact.

    For a request that wants numbers `as_written`, they are what `orjson.dumps` writes as they were, digit by digit.
    """
    if _AS_WRITTEN.get():
        return json.loads(text, parse_float=orjson.Fragment, parse_int=orjson.Fragment)
    return json.loads(text)


class Client(Protocol):
    """An official client, with its own retries turned off."""

    def ask(self, method: str, target: str, body: bytes | None, content_type: str) -> Answer:
        """One request; `target` is its path and query. Returns the answer, read by `read_json`, whatever its status.

        Raises `Refused` when another product answers, and `Unanswered`. The next call asks another node where this one
        found no connection or lost it.
        """

    def official(self) -> Any:
        """A new client as its library makes it, to the same nodes, with the same credentials and the same timeout."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Product:
    """How the products differ on the wire."""

    name: str  # as in OUTBOX_DESTINATION
    title: str
    hits: Callable[[Cluster, str, Mapping[str, Any]], Iterator[Sequence[Any]]]
    """Lists an index: its name and the search, to the hits page by page; see `outbox.destinations.cluster.listing`."""

    most_marked: str
    """The name of the option of a highlight that says how much of a text is looked through."""

    asked_of_bulk: Mapping[str, str] = field(default_factory=dict)
    """Parameters of `_bulk` that only newer versions know."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The nodes of one cluster behind a client."""

    product: Product
    client: Client
    nodes: int

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        accept: Collection[int] = (),
        once: bool = False,
        as_written: bool = False,
        **parameters: str | int,
    ) -> Answer:
        """Send `body`, JSON or the prepared bytes of a `_bulk`, to `path`, with the query `parameters`.

        What was answered is never repeated: the outbox decides. What was not is, by the next node, even if the first
        has carried it out before its connection broke; `once`: only if nothing was sent to it. `as_written`: see
        `read_json`.

        Raises `Refused` for an error status that is not in `accept` (404: `Missing`), and `Unanswered`.
        """
        target = f"{path}?{urlencode(parameters, quote_via=quote, safe=',*')}" if parameters else path
        content_type = "application/x-ndjson" if isinstance(body, bytes) else "application/json"
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
        token = _AS_WRITTEN.set(as_written)
        try:
            answer = self._answer(method, target, sent, content_type, once=once)
        finally:
            _AS_WRITTEN.reset(token)
        if answer.status >= 300 and answer.status not in accept:
            raise (Missing if answer.status == 404 else Refused)(*answer)
        return answer

    def _answer(self, method: str, target: str, body: bytes | None, content_type: str, *, once: bool) -> Answer:
        nodes = self.nodes
        while True:
            nodes -= 1
            try:
                return self.client.ask(method, target, body, content_type)
            except Unanswered as error:
                if not nodes or error.connection == "kept" or (once and error.connection == "lost"):
                    raise


def path_to(*parts: str) -> str:
    """A path of names, each of which may hold any character."""
    return "".join(f"/{quote(part, safe='')}" for part in parts)
