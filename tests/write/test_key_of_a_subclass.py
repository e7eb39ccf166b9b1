"""A joined subclass calls its key otherwise than its base does."""

from __future__ import annotations

from sqlalchemy import Engine, update
from sqlalchemy.orm import sessionmaker

from outbox.store.store import Store
from tests.triggers.world import Base, Engineer, registered


def test_update_of_a_subclass_by_criteria_is_noted(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    sessions = registered(Engineer).capture(sessionmaker(engine))
    with sessions.begin() as session:
        session.add_all([Engineer(id=1, name="Ada", language="C"), Engineer(id=2, name="Grace", language="COBOL")])
    with sessions.begin() as session:
        assert session.execute(update(Engineer).where(Engineer.language == "C").values(language="Ada")).rowcount == 1
    store = Store(engine)
    assert [row["document_id"] for row in store.events()] == ["1", "2", "1"]
    store.close()
