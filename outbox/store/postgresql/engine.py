"""What an engine of ours needs on PostgreSQL. Those of applications stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

from sqlalchemy import Engine, ExceptionContext, event

from outbox.errors import DatabaseUnavailable
from outbox.store.dialect import Run
from outbox.store.postgresql import pooler

SETTINGS: Final = {
    # The tables change faster than the statistics of them: without these PostgreSQL reads whole tables where an index
    # holds the few rows that are asked for, and a record of 1,000 rows takes 270 ms instead of 11.
    "enable_seqscan": "off",
    "random_page_cost": "1.1",
    "jit": "off",
    # A host that was cut off, or a process that was stopped, in the middle of a claim would keep all relays waiting.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "25000",
    "idle_in_transaction_session_timeout": "30000",
    # With a snapshot of its own, whoever has waited for the lock would not see what its holder has claimed.
    "default_transaction_isolation": r"read\ committed",
    # A row that a policy hides would look as if it were deleted: better no answer than a document less.
    "row_security": "off",
}

CONNECTING: Final = {
    "application_name": "outbox-relay",
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""A server that is gone is noticed within half a minute, too. What the URL says goes first."""


LOCKED_FOR_MS: Final = 1_000
"""No read waits so long for what an application does with its tables, but for one that changes the table itself."""

_FEATURE_NOT_SUPPORTED: Final = "0A000"


def prepare(engine: Engine, address: str) -> None:
    """See `outbox.store.dialect.Dialect.prepare`. `address`: of the database, for people."""

    @event.listens_for(engine, "do_connect")
    def on_connecting(dialect: Any, _record: Any, arguments: Any, options: dict[str, Any]) -> Any:
        given = options.get("options", "")
        options["options"] = " ".join([*(f"-c {name}={value}" for name, value in SETTINGS.items()), given]).strip()
        for name, value in CONNECTING.items():
            options.setdefault(name, value)
        connect = partial(dialect.connect, *arguments, **options)
        try:
            connected = connect()
        except dialect.loaded_dbapi.OperationalError as error:
            raise pooler.explained(error, address) from error.__cause__
        if pooler.shares_sessions(connected, connect):
            connected.close()
            raise pooler.refusal(address)
        return connected

    event.listen(engine, "handle_error", on_error)


def on_error(context: ExceptionContext) -> None:
    """See `outbox.store.dialect.Dialect.on_error`. A session's plan of a statement is refused once a column has another
    type: a new session makes another."""
    if getattr(context.original_exception, "sqlstate", None) == _FEATURE_NOT_SUPPORTED:
        context.is_disconnect = True


@contextmanager
def reading(run: Run) -> Iterator[None]:
    """See `outbox.store.dialect.Dialect.reading`."""
    run(f"SET lock_timeout = {LOCKED_FOR_MS}")
    try:
        yield
    finally:
        with suppress(DatabaseUnavailable):  # a lost connection has taken it along
            run("RESET lock_timeout")
