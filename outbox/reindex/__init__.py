"""Rebuild the index of an entity from the database, under traffic."""

from outbox.reindex.reindexer import Reindexer, reindex
from outbox.reindex.rollback import drop_old, roll_back
from outbox.reindex.selection import select

__all__ = ["Reindexer", "drop_old", "reindex", "roll_back", "select"]
