"""The outbox as tests see it: writes through the repository, relays driven by hand, and looks into the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from outbox import EntityRegistry, OutboxRepository
from outbox.destinations.base import Destination
from outbox.relay.relay import Relay
from outbox.settings import Settings
from outbox.store import operators
from outbox.store.store import Store


def settings(**given: Any) -> Settings:
    """Settings with what a test gives, everything else by default."""
    return Settings(_env_file=None, **given)  # type: ignore[call-arg]


class Outbox:
    """A database under test."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sessions: sessionmaker[Session] = sessionmaker(engine)
        self._look = Store(engine)
        self._stores = [self._look]

    @property
    def url(self) -> str:
        """What OUTBOX_DATABASE_URL has to say."""
        return self.engine.url.render_as_string(hide_password=False)

    def repository(self, session: Session) -> OutboxRepository:
        return OutboxRepository(session)

    def index(self, index: str, document_id: str, document: Mapping[str, Any], tenant_id: str | None = None) -> int:
        with self.sessions.begin() as session:
            event_id = OutboxRepository(session).index(index, document_id, document, tenant_id=tenant_id)
        assert event_id is not None
        return event_id

    def update(
        self, index: str, document_id: str, changes: Mapping[str, Any], upsert: Mapping[str, Any] | None = None
    ) -> int:
        with self.sessions.begin() as session:
            event_id = OutboxRepository(session).update(index, document_id, changes, upsert=upsert)
        assert event_id is not None
        return event_id

    def delete(self, index: str, document_id: str) -> int:
        with self.sessions.begin() as session:
            event_id = OutboxRepository(session).delete(index, document_id)
        assert event_id is not None
        return event_id

    def index_many(self, index: str, documents: list[tuple[str, Mapping[str, Any]]]) -> list[int]:
        with self.sessions.begin() as session:
            return OutboxRepository(session).index_many(index, documents)

    def raw(self, sql: str, **parameters: Any) -> None:
        """What another program does to the tables."""
        with self.engine.begin() as connection:
            connection.execute(text(sql), parameters)

    def draw_again(self) -> None:
        """Versions begin at 1 once more, as in a database that was restored or made anew."""
        sequence = self.engine.dialect.name == "postgresql"
        self.raw("ALTER SEQUENCE outbox_tokens RESTART" if sequence else "UPDATE outbox_control SET last_token = 0")

    def put_raw(self, index: str, document_id: str, document: str, action: str = "index") -> int:
        """A row that another program wrote, past all checks."""
        with self.engine.begin() as connection:
            event_id = connection.execute(
                text("INSERT INTO outbox_events (action, index_name, document_id) VALUES (:a, :i, :d) RETURNING id"),
                {"a": action, "i": index, "d": document_id},
            ).scalar_one()
            connection.execute(
                text("INSERT INTO outbox_documents (event_id, document) VALUES (:e, :d)"),
                {"e": event_id, "d": document},
            )
        return int(event_id)

    def store(self) -> Store:
        made = Store(self.engine)
        self._stores.append(made)
        return made

    def relay(
        self, destination: Destination, relay_id: int = 1, registry: EntityRegistry | None = None, **given: Any
    ) -> Relay:
        """A relay that the test drives with `run_once(now)`."""
        return Relay(self.store(), destination, settings(**given), relay_id=relay_id, registry=registry)

    def drain(self, destination: Destination, now: int | None = None, **given: Any) -> None:
        """Deliver until nothing more happens at this moment."""
        relay = self.relay(destination, **given)
        while relay.run_once(now):
            pass

    def row(self, event_id: int) -> dict[str, Any]:
        found = self._look.event(event_id)
        assert found is not None, f"row {event_id} is gone"
        return found

    def state(self, event_id: int) -> str:
        return str(self.row(event_id)["state"])

    def outcome(self, event_id: int) -> str | None:
        outcome = self.row(event_id)["outcome"]
        return None if outcome is None else str(outcome)

    def counts(self) -> dict[str, int]:
        return self._look.counts()

    def dead(self) -> list[dict[str, Any]]:
        return operators.dead(self._look)

    def relays(self) -> list[dict[str, Any]]:
        return self._look.relays()

    def close(self) -> None:
        for each in self._stores:
            each.close()
