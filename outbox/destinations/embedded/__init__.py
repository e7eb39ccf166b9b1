"""A search engine in one SQLite file, for applications without a cluster."""

from outbox.destinations.embedded.destination import EmbeddedDestination

__all__ = ["EmbeddedDestination"]
