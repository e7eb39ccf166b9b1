"""What has come in since the last look: rows of the outbox, and statements to the database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from sqlalchemy import Engine, event, text

from outbox.store.found import Found
from outbox.store.models import Event
from outbox.store.store import Store


class Rows:
    """Rows that came in since the last look, as `index/_id`."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._seen = engine, 0

    def events(self) -> list[Event]:
        with self._engine.connect() as connection:
            found = connection.execute(
                text(f"SELECT {', '.join(Event._fields)} FROM outbox_events WHERE id > :seen ORDER BY id"),
                {"seen": self._seen},
            )
            events = [Event._make(row) for row in found]
        self._seen = max([self._seen, *(each.id for each in events)])
        assert {each.action for each in events} <= {"refresh"}
        return events

    def __call__(self) -> list[str]:
        return [f"{each.index_name}/{each.document_id}" for each in self.events()]


@contextmanager
def statements(engine: Engine, start: str = "SELECT") -> Iterator[list[str]]:
    """The statements that begin so and are executed meanwhile."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        if sql.startswith(start):
            seen.append(sql)

    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


@contextmanager
def asked_of_stores() -> Iterator[list[tuple[str, Any]]]:
    """The statements that stores carry out meanwhile, each as the driver gets it, with its parameters."""
    asked: list[tuple[str, Any]] = []
    run = Store.run

    def noted(store: Store, sql: str, parameters: Mapping[str, Any] | None = None, /, **named: Any) -> Found:
        asked.append(store.dialect.prepared(sql, named if parameters is None else parameters))
        return run(store, sql, parameters, **named)

    with patch.object(Store, "run", noted):
        yield asked
