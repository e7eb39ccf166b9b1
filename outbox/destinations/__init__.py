"""Where documents go. `base` is the contract; each other file is one search engine that keeps it."""

from __future__ import annotations

from urllib.parse import urlsplit

from outbox.destinations.base import Destination
from outbox.errors import ConfigurationError
from outbox.settings import Settings


def destination_of(loaded: Settings) -> Destination:
    """The configured destination. Raises `ConfigurationError` when none is: never silently another one."""
    # Imported here, not above: applications, and commands that need no destination, start without loading its client.
    if loaded.destination == "embedded":
        if loaded.embedded_path is None:
            raise ConfigurationError("no file for the embedded destination: set OUTBOX_EMBEDDED_PATH, e.g. search.db")
        from outbox.destinations.embedded.destination import EmbeddedDestination

        return EmbeddedDestination(loaded.embedded_path, timeout=loaded.request_timeout)
    if not loaded.elasticsearch_url:
        raise ConfigurationError(
            "no destination: set OUTBOX_ELASTICSEARCH_URL, e.g. http://localhost:9200; or, to do without a cluster, "
            "OUTBOX_DESTINATION=embedded and OUTBOX_EMBEDDED_PATH, e.g. search.db"
        )
    from outbox.destinations.elasticsearch.destination import ElasticsearchDestination

    password = loaded.elasticsearch_password
    return ElasticsearchDestination(
        loaded.elasticsearch_url,
        api_key=loaded.elasticsearch_api_key.get_secret_value() if loaded.elasticsearch_api_key else None,
        basic_auth=(loaded.elasticsearch_username, password.get_secret_value() if password else "")
        if loaded.elasticsearch_username
        else None,
        ca_certs=loaded.elasticsearch_ca_certs,
        request_timeout=loaded.request_timeout,
        bulk_timeout=loaded.bulk_timeout,
        connections=loaded.concurrency + 2,  # a reindex and a verification go on beside the rows
        request_bytes=loaded.batch_bytes,
        gc_deletes=loaded.gc_deletes,
    )


def address_of(loaded: Settings) -> str:
    """Where documents go, for people: without the credentials that a URL may hold."""
    if loaded.destination == "embedded":
        return str(loaded.embedded_path.absolute() if loaded.embedded_path else None)
    shown = []
    for url in loaded.elasticsearch_url:
        parts = urlsplit(url)
        shown.append(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")
    return ", ".join(shown)
