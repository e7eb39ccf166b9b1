"""outbox-relay: keeps Elasticsearch exactly in step with your database.

The write side, for applications; the relay runs as a process of its own (`outbox-relay run`).
"""

from outbox import sqlite
from outbox.entities import Dependency, EntityRegistry
from outbox.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    DestinationError,
    InvalidDocument,
    InvalidInput,
    InvalidName,
    OutboxError,
    SchemaError,
    SyncFailed,
    SyncTimeout,
)
from outbox.repository import OutboxRepository

__version__ = "0.1.0"

__all__ = [
    "ConfigurationError",
    "DatabaseUnavailable",
    "Dependency",
    "DestinationError",
    "EntityRegistry",
    "InvalidDocument",
    "InvalidInput",
    "InvalidName",
    "OutboxError",
    "OutboxRepository",
    "SchemaError",
    "SyncFailed",
    "SyncTimeout",
    "sqlite",
]
