"""See `outbox.store.nested`; on PostgreSQL."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.pool import StaticPool

from outbox.errors import ConfigurationError
from outbox.store.nested import Borrowed


def _in_transaction(driver: Any) -> bool:
    return bool(driver.info.transaction_status.name != "IDLE")


def engine_within(connection: Connection) -> Engine:
    """An engine over the application's own connection, whose transactions are savepoints where one of it is open."""
    if not connection.dialect.driver.startswith("psycopg"):
        raise ConfigurationError(
            f"rows cannot be delivered within a transaction of the driver {connection.dialect.driver}: use psycopg"
        )
    driver: Any = connection.connection.driver_connection
    if connection.in_transaction() and not _in_transaction(driver):
        connection.exec_driver_sql("SELECT 1")  # the driver begins with it, and what follows is within
    return create_engine(
        "postgresql+psycopg://",
        creator=lambda: Borrowed(driver, "BEGIN", _in_transaction, autocommit=False),
        poolclass=StaticPool,
        use_native_hstore=False,  # to look for it takes the driver's own connection
    )
