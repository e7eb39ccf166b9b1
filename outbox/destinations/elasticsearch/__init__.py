"""Elasticsearch 8.19 and later."""

from outbox.destinations.elasticsearch.destination import ElasticsearchDestination

__all__ = ["ElasticsearchDestination"]
