"""A transaction that was prepared, and whose client is gone, is in nobody's way and is not forgotten."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from outbox import check
from outbox.errors import DatabaseUnavailable
from outbox.store.postgresql import dialect, findings
from outbox.verify import Verification
from tests.reindex.world import PHASES, World
from tests.support.models import Contact
from tests.support.outbox import Outbox
from tests.support.places import EmbeddedPlace

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("end", ["COMMIT PREPARED", "ROLLBACK PREPARED"])
@pytest.mark.parametrize("begun", ["", *PHASES])
def test_transaction_left_prepared_by_a_client_that_is_gone_is_in_step_after_a_rebuild(
    outbox: Outbox, place: EmbeddedPlace, monkeypatch: pytest.MonkeyPatch, end: str, begun: str
) -> None:
    world = World(outbox, place).filled(3)

    def prepare() -> None:
        with world.sessions(twophase=True) as session:
            session.get_one(Contact, 1).name = "renamed"
            session.delete(session.get_one(Contact, 2))
            session.add(Contact(id=4, name="new"))
            session.prepare()
            session.invalidate()
        world.save(3, "later")  # its row has a higher id, and is delivered first

    if begun:
        world.rebuild({begun: prepare})
    else:
        prepare()
        world.rebuild()
    world.assert_in_step()

    with outbox.engine.connect() as connection:
        left = connection.scalar(text("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"))
    monkeypatch.setattr(dialect, "WATERMARK_WITHIN_S", 0.1)
    with pytest.raises(DatabaseUnavailable, match=f"prepared as '{left}'.; end them"):
        list(Verification(world.store, place.destination, world.registry).run())
    monkeypatch.setattr(findings, "LONG_S", 0)
    (found,) = (each for each in check.database(outbox.engine) if each.name == "transactions")
    assert (found.level, f"prepared as '{left}'" in found.found) == ("warn", True)

    with outbox.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"{end} '{left}'")
    world.assert_in_step()
    assert len(world.expected()) == 3
    assert (place.get("contacts", "2:t1:4") is not None) == (end == "COMMIT PREPARED")
    world.store.close()
