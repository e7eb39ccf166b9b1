"""Database triggers that write outbox rows for changes that no session sees."""

from outbox.triggers.installer import (
    Standing,
    create,
    create_sql,
    drop,
    drop_sql,
    install,
    installed,
    remove,
    status,
    unseen_keys,
)
from outbox.triggers.trigger import VIEW

__all__ = [
    "VIEW",
    "Standing",
    "create",
    "create_sql",
    "drop",
    "drop_sql",
    "install",
    "installed",
    "remove",
    "status",
    "unseen_keys",
]
