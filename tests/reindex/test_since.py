"""`--from-date` means one instant, whatever the type of the column that says when a row was changed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import DateTime, Engine, TypeDecorator, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from outbox import EntityRegistry
from outbox.reindex.selection import rows_of, select
from outbox.store.store import Store
from tests.support.outbox import Outbox


class Utc(TypeDecorator[datetime]):
    """As many applications have it: an instant, without a time zone in the database."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Any) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise TypeError("an instant has a time zone")
        return value and value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, _dialect: Any) -> datetime | None:
        return value and value.replace(tzinfo=UTC)


@pytest.mark.parametrize("column", [DateTime(), DateTime(timezone=True), Utc()], ids=["naive", "aware", "own"])
@pytest.mark.parametrize(
    "since", ["2026-11-01T11:30:00+01:00", "2026-11-01T10:30:00+00:00", "2026-11-01T05:30:00-05:00"]
)
def test_rows_since_an_instant_are_the_same_in_every_time_zone(outbox: Outbox, column: Any, since: str) -> None:
    class Base(DeclarativeBase):
        pass

    class Meeting(Base):
        __tablename__ = "meetings"
        id: Mapped[int] = mapped_column(primary_key=True)
        changed: Mapped[datetime] = mapped_column(column)

    Base.metadata.create_all(outbox.engine)
    registry = EntityRegistry()
    registry.add(Meeting, index="meetings", fields=["id"], changed_at="changed")
    with Session(outbox.engine) as session:
        for hour in (9, 11, 13):
            changed = datetime(2026, 11, 1, hour, tzinfo=UTC)
            naive = isinstance(column, DateTime) and not column.timezone
            session.add(Meeting(changed=changed.replace(tzinfo=None) if naive else changed))
        session.commit()
    store = outbox.store()
    (chosen,) = select(store, registry, entities=["meetings"], since=since)
    assert rows_of(store, chosen) == 2
    if isinstance(column, Utc):
        (chosen,) = select(store, registry, entities=["meetings"], since="2026-11-01")
        assert rows_of(store, chosen) == 3


def test_date_without_a_time_zone_is_utc_whatever_the_server_has(postgresql_engine: Engine) -> None:
    class Base(DeclarativeBase):
        pass

    class Meeting(Base):
        __tablename__ = "meetings"
        id: Mapped[int] = mapped_column(primary_key=True)
        changed: Mapped[datetime] = mapped_column(DateTime(timezone=True))

    Base.metadata.create_all(postgresql_engine)
    registry = EntityRegistry()
    registry.add(Meeting, index="meetings", fields=["id"], changed_at="changed")
    with Session(postgresql_engine) as session:
        session.add_all(Meeting(changed=datetime(2026, 11, 1, hour, tzinfo=UTC)) for hour in (9, 13))
        session.execute(text(f"ALTER DATABASE {postgresql_engine.url.database} SET timezone = 'America/New_York'"))
        session.commit()
    postgresql_engine.dispose()  # sessions that begin from now on have it
    store = Store(postgresql_engine)
    (chosen,) = select(store, registry, entities=["meetings"], since="2026-11-01T12:00:00")
    assert rows_of(store, chosen) == 1
    store.close()
