"""What an engine of ours needs on PostgreSQL. Those of applications stay as they are."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Engine, event

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


def prepare(engine: Engine) -> None:
    """See `outbox.store.dialect.Dialect.prepare`."""

    @event.listens_for(engine, "do_connect")
    def on_connecting(_dialect: Any, _record: Any, _arguments: Any, options: dict[str, Any]) -> None:
        given = options.get("options", "")
        options["options"] = " ".join([*(f"-c {name}={value}" for name, value in SETTINGS.items()), given]).strip()
        for name, value in CONNECTING.items():
            options.setdefault(name, value)
