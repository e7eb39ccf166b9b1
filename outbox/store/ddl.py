"""What the tables need beyond columns: an index of some rows, a clock, ids that never come back.

SQLAlchemy takes such options for all databases at once, and each database uses its own.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import DDL, BigInteger, Boolean, MetaData, event
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from outbox.store.postgresql import ddl as of_postgresql
from outbox.store.sqlite import ddl as of_sqlite


class Now(FunctionElement[int]):
    """The clock of the database: milliseconds since 1970-01-01 UTC."""

    type = BigInteger()
    inherit_cache = True


@compiles(Now, "sqlite")
def _now(*_: Any, **__: Any) -> str:
    return of_sqlite.NOW


@compiles(Now, "postgresql")
def _now_of_postgresql(*_: Any, **__: Any) -> str:
    return of_postgresql.NOW


class IsOwn(FunctionElement[bool]):
    """Whether a row of `outbox_events` is this transaction's own, of those above the first that it has written."""

    type = Boolean()
    inherit_cache = True


@compiles(IsOwn, "sqlite")
def _is_own(*_: Any, **__: Any) -> str:
    return "1"  # nobody else writes until it ends


@compiles(IsOwn, "postgresql")
def _is_own_of_postgresql(*_: Any, **__: Any) -> str:
    return of_postgresql.is_own("outbox_events")


def some_rows(condition: str) -> dict[str, Any]:
    """Options of an `Index` on the rows of a condition alone."""
    return {**of_sqlite.some_rows(condition), **of_postgresql.some_rows(condition)}


NEVER_REUSED: Final[dict[str, Any]] = {**of_sqlite.NEVER_REUSED}
"""Options of a `Table` whose ids do not come back when their rows are deleted."""

KEPT_BY_KEY: Final[dict[str, Any]] = {**of_sqlite.KEPT_BY_KEY}
"""Options of a `Table` that is read by its primary key alone."""


def complete(metadata: MetaData) -> None:
    """Have what a database needs besides tables and indexes be made and dropped with them."""
    for when, statements in (("after_create", of_postgresql.MORE), ("before_drop", of_postgresql.LESS)):
        for statement in statements:
            # A string would be searched for parameters.
            made: Any = DDL(statement.replace("%", "%%"))  # type: ignore[no-untyped-call]
            event.listen(metadata, when, made.execute_if(dialect="postgresql"))
