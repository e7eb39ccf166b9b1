"""Elasticsearch 8.19 to 9.x."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from outbox.destinations.cluster import listing
from outbox.destinations.cluster.destination import ClusterDestination
from outbox.destinations.cluster.wire import Cluster, Product
from outbox.destinations.elasticsearch.client import ElasticsearchClient

# From 8.18 on. Otherwise its errors may hold the document itself.
_WITHOUT_DOCUMENTS: Final = {"include_source_on_error": "false"}

ELASTICSEARCH: Final = Product(
    "elasticsearch", "Elasticsearch", listing.by_point_in_time, "max_analyzed_offset", asked_of_bulk=_WITHOUT_DOCUMENTS
)


class ElasticsearchDestination(ClusterDestination):
    """See `outbox.destinations.base.Destination` for what it promises."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        api_key: str | None = None,
        basic_auth: tuple[str, str] | None = None,
        ca_certs: Path | None = None,
        request_timeout: float = 20.0,
        bulk_timeout: float = 5.0,
        connections: int = 10,
        request_bytes: int = 5_000_000,
        gc_deletes: str = "24h",
    ) -> None:
        options: dict[str, Any] = {"ca_certs": str(ca_certs)} if ca_certs else {}
        if api_key:
            options["api_key"] = api_key
        elif basic_auth:
            options["basic_auth"] = basic_auth
        client = ElasticsearchClient(urls, request_timeout=request_timeout, connections=connections, **options)
        super().__init__(
            Cluster(ELASTICSEARCH, client, len(urls)),
            bulk_timeout=bulk_timeout,
            request_bytes=request_bytes,
            gc_deletes=gc_deletes,
        )
