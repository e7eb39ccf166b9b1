"""Prepare an application's engine for SQLite with a relay beside it."""

from outbox.store.sqlite.engine import AUTOCHECKPOINT_PAGES, BUSY_TIMEOUT_S, lock, prepare

__all__ = ["AUTOCHECKPOINT_PAGES", "BUSY_TIMEOUT_S", "lock", "prepare"]
