"""OpenSearch 2.19 to 3.x."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from outbox.destinations.cluster import listing
from outbox.destinations.cluster.destination import ClusterDestination
from outbox.destinations.cluster.wire import Cluster, Product
from outbox.destinations.opensearch.client import OpenSearchClient

# Its points in time cannot be paged through by `_shard_doc` before 3.3.
OPENSEARCH: Final = Product("opensearch", "OpenSearch", listing.by_scroll, "max_analyzer_offset")


class OpenSearchDestination(ClusterDestination):
    """See `outbox.destinations.base.Destination` for what it promises."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        basic_auth: tuple[str, str] | None = None,
        ca_certs: Path | None = None,
        request_timeout: float = 20.0,
        bulk_timeout: float = 5.0,
        connections: int = 10,
        request_bytes: int = 5_000_000,
        gc_deletes: str = "24h",
    ) -> None:
        options: dict[str, Any] = {"ca_certs": str(ca_certs)} if ca_certs else {}
        client = OpenSearchClient(
            urls, basic_auth=basic_auth, request_timeout=request_timeout, connections=connections, **options
        )
        super().__init__(
            Cluster(OPENSEARCH, client, len(urls)),
            bulk_timeout=bulk_timeout,
            request_bytes=request_bytes,
            gc_deletes=gc_deletes,
        )
