"""Rebuild the index of an entity from the database, under traffic."""

from outbox.reindex.reindexer import Reindexer, drop_old, reindex, roll_back, select

__all__ = ["Reindexer", "drop_old", "reindex", "roll_back", "select"]
