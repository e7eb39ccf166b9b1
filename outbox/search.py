"""What an application calls when its users search: the best matches, from where the relay delivers to.

    search = Search()    # once a process; the settings are those of the relay
    hits = search("contacts", "ada lovlace", tenant="acme")

Words, their beginnings and misspelt words, on either destination. For all else that Elasticsearch can do there is its
own client.
"""

from __future__ import annotations

from typing import Self

from outbox.destinations import destination_of
from outbox.destinations.base import Hit as Hit
from outbox.settings import load


class Search:
    """Searches from several threads at once, up to `concurrency` of them at the same time.

    `timeout` is in seconds, and shorter than a relay's: a person waits. Nothing is asked before the first search, so
    an application starts while the search engine is away. Raises `ConfigurationError` if no destination is set.
    """

    def __init__(self, *, timeout: float = 3.0, concurrency: int = 10) -> None:
        self._destination = destination_of(load(request_timeout=timeout, concurrency=concurrency))

    def __call__(self, index: str, query: str, *, tenant: object = None, limit: int = 10) -> list[Hit]:
        """The best matches, `limit` at most, best first; of one tenant, if given, by the documents' field `tenantId`.

        A tenant is text, a UUID, an integer or a member of an enum, in any spelling of it.

        Raises `IndexMissing` when nothing was delivered to the index yet, else `DestinationError`.
        """
        return self._destination.search(index, query, tenant=tenant, limit=limit)

    def close(self) -> None:
        """Let go of connections and files. No search is made after that."""
        self._destination.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
