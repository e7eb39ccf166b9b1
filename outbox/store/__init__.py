"""Every statement about the outbox tables, as plain functions of a `Store`."""

from outbox.store.store import Control, Store

__all__ = ["Control", "Store"]
