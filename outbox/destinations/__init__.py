"""Where documents go. `base` is the contract; each other folder is a search engine that keeps it, or what two share."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from outbox.destinations.base import Destination
from outbox.errors import ConfigurationError, install_command
from outbox.settings import Settings


def destination_of(loaded: Settings) -> Destination:
    """The configured destination. Raises `ConfigurationError` when none is: never silently another one."""
    # Imported here, not above: applications, and commands that need no destination, start without loading its client.
    if loaded.destination == "embedded":
        if loaded.embedded_path is None:
            raise ConfigurationError("no file for the embedded destination: set OUTBOX_EMBEDDED_PATH, e.g. search.db")
        from outbox.destinations.embedded.destination import EmbeddedDestination

        return EmbeddedDestination(loaded.embedded_path, timeout=loaded.request_timeout)
    if not loaded.cluster_url:
        raise ConfigurationError(_without_address(loaded))
    shared: dict[str, Any] = {
        "request_timeout": loaded.request_timeout,
        "bulk_timeout": loaded.bulk_timeout,
        "connections": loaded.concurrency + 2,  # a reindex and a verification go on beside the rows
        "request_bytes": loaded.batch_bytes,
        "gc_deletes": loaded.gc_deletes,
    }
    if loaded.destination == "opensearch":
        try:
            from outbox.destinations.opensearch.destination import OpenSearchDestination
        except ImportError as error:
            raise ConfigurationError(f"OpenSearch needs {error.name}: {install_command('opensearch')}") from None

        return OpenSearchDestination(
            loaded.opensearch_url,
            basic_auth=_basic_auth(loaded.opensearch_username, loaded.opensearch_password),
            ca_certs=loaded.opensearch_ca_certs,
            **shared,
        )
    from outbox.destinations.elasticsearch.destination import ElasticsearchDestination

    return ElasticsearchDestination(
        loaded.elasticsearch_url,
        api_key=loaded.elasticsearch_api_key.get_secret_value() if loaded.elasticsearch_api_key else None,
        basic_auth=_basic_auth(loaded.elasticsearch_username, loaded.elasticsearch_password),
        ca_certs=loaded.elasticsearch_ca_certs,
        **shared,
    )


def _without_address(loaded: Settings) -> str:
    """What to set where the address of the cluster is missing."""
    if loaded.destination == "opensearch":
        return "no destination: set OUTBOX_OPENSEARCH_URL, e.g. http://localhost:9200"
    if loaded.opensearch_url:
        return "no destination: OUTBOX_OPENSEARCH_URL alone does not choose it; set OUTBOX_DESTINATION=opensearch, too"
    return (
        "no destination: set OUTBOX_ELASTICSEARCH_URL, e.g. http://localhost:9200; or, to do without a cluster, "
        "OUTBOX_DESTINATION=embedded and OUTBOX_EMBEDDED_PATH, e.g. search.db"
    )


def _basic_auth(username: str | None, password: SecretStr | None) -> tuple[str, str] | None:
    return (username, password.get_secret_value() if password else "") if username else None


def address_of(loaded: Settings) -> str:
    """Where documents go, for people: without the credentials that a URL may hold."""
    if loaded.destination == "embedded":
        return str(loaded.embedded_path.absolute() if loaded.embedded_path else None)
    shown = []
    for url in loaded.cluster_url:
        parts = urlsplit(url)
        shown.append(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")
    return ", ".join(shown)
