"""OpenSearch 2.19 and later."""

from outbox.destinations.opensearch.destination import OpenSearchDestination

__all__ = ["OpenSearchDestination"]
