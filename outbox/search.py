"""What an application calls when its users search: the best matches, from where the relay delivers to.

    search = Search()    # once a process; the settings are those of the relay
    hits = search("contacts", "ada lovlace", tenant="acme")

Words, their beginnings and misspelt words, on either destination. For all else that Elasticsearch can do there is its
own client.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import Any, Self

from outbox.destinations import destination_of
from outbox.destinations.base import Found as Found
from outbox.destinations.base import Hit as Hit
from outbox.documents import check_index_name
from outbox.settings import LONGEST_LEASE_S, load


class Search:
    """Searches from several threads at once, up to `concurrency` of them at the same time.

    `timeout` is in seconds, and shorter than a relay's: a person waits. Nothing is asked before the first search, so
    an application starts while the search engine is away. Raises `ConfigurationError` if no destination is set.
    """

    def __init__(self, *, timeout: float = 3.0, concurrency: int = 10) -> None:
        # The lease is a relay's: what it allows must not decide about a timeout that no relay has.
        given = load(request_timeout=timeout, concurrency=concurrency, lease=LONGEST_LEASE_S)
        self._destination = destination_of(given)
        self._client: Any = None
        self._making = Lock()

    def __call__(
        self,
        index: str,
        query: str | None,
        *,
        tenant: object = None,
        offset: int = 0,
        limit: int = 10,
        where: Mapping[str, Any] | None = None,
        sort: str | Sequence[str] = (),
        fields: Iterable[str] | None = None,
        highlight: str | Iterable[str] = (),
    ) -> Found:
        """The best matches, best first: `limit` of them, after `offset` others, and how many there are in all.

        `query`: words; None finds all documents, in no promised order.

        `tenant`: text, a UUID, an integer or a member of an enum, in any spelling of it; by the documents' field
        `tenantId`.

        `where`: what fields must hold: a value, one of a list of values, or a range with `gt`, `gte`, `lt` and `lte`.
        A date without a time is all of that day. Fields in objects are named by their path, `address.city`; of an array
        one member is enough.

        `sort`: fields instead of the best match, the smallest value first, or the largest with `-` before the name.
        Documents without the field come last; among equals the best match comes first.

        `fields`: those that come back, with all that is below them; none for an empty list.

        `highlight`: fields of which a passage comes back with the words that were found, see `Hit.highlights`.

        Only the first 10,000 matches can be paged through. Raises `InvalidInput` for what cannot be asked, also where a
        field is of a type that cannot be filtered, sorted by or highlighted; `IndexMissing` when nothing was delivered
        to the index yet, else `DestinationError`.
        """
        return self._destination.search(
            index,
            query,
            tenant=tenant,
            offset=offset,
            limit=limit,
            where=where,
            sort=sort,
            fields=fields,
            highlight=highlight,
        )

    def client(self, index: str) -> tuple[Any, str]:
        """For all else: the search engine's own client, and the name under which it finds the index.

            client, name = search.client("contacts")
            client.search(index=name, query={"match": {"name": "ada"}})

        The client is made at the first call and closed by `close`. It is for reading: only the relay writes documents.
        Raises `ConfigurationError` for the embedded destination, which has none.
        """
        check_index_name(index)
        with self._making:
            if self._client is None:
                self._client = self._destination.client()
        return self._client, index

    def close(self) -> None:
        """Let go of connections and files. No search is made after that."""
        self._destination.close()
        if self._client is not None:
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
