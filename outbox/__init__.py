"""outbox-relay: keeps Elasticsearch exactly in step with your database.

What applications use, to write and to search; the relay runs as a process of its own (`outbox-relay run`).
"""

from outbox.entities import Dependency, DerivedMappings, EntityRegistry
from outbox.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    DestinationError,
    DestinationUnanswered,
    IndexMissing,
    InvalidDocument,
    InvalidInput,
    InvalidName,
    OutboxError,
    SchemaError,
    SyncFailed,
    SyncTimeout,
    UnknownTenant,
)
from outbox.search import Search
from outbox.store.sqlite import engine as sqlite
from outbox.write.repository import OutboxRepository

__version__ = "0.1.0"

__all__ = [
    "ConfigurationError",
    "DatabaseUnavailable",
    "Dependency",
    "DerivedMappings",
    "DestinationError",
    "DestinationUnanswered",
    "EntityRegistry",
    "IndexMissing",
    "InvalidDocument",
    "InvalidInput",
    "InvalidName",
    "OutboxError",
    "OutboxRepository",
    "SchemaError",
    "Search",
    "SyncFailed",
    "SyncTimeout",
    "UnknownTenant",
    "sqlite",
]
