"""Every construct of the mapper that may be registered is exact, and each other one is refused at registration."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from outbox import ConfigurationError
from outbox.entities.loader import LoadFailed
from outbox.triggers import installer as triggers
from tests.entities.constructs import CONSTRUCTS, YES, Construct, Made
from tests.support.following import Following

ACCEPTED = [each for each in CONSTRUCTS if each.refused is None]
REFUSED = [each for each in CONSTRUCTS if each.refused is not None]
pytestmark = [
    pytest.mark.filterwarnings("ignore:Flushing object:sqlalchemy.exc.SAWarning"),
    pytest.mark.filterwarnings("ignore:.*relationship X:sqlalchemy.exc.SAWarning"),
]


def started(construct: Construct, engine: Engine) -> tuple[Made, Following]:
    made = construct.make()
    made.base.metadata.create_all(engine)
    return made, Following(engine, made.registry)


def exact(following: Following) -> None:
    """The index is what the database says, and every document can be made."""
    assert following.follow() == following.rebuilt()
    assert [each for each in following.index.values() if isinstance(each, LoadFailed)] == []


@pytest.mark.parametrize("construct", REFUSED, ids=lambda each: each.make.__name__)
def test_construct_that_cannot_be_exact_is_refused_with_what_to_write(construct: Construct) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(construct.refused or "")):
        construct.make()


@pytest.mark.parametrize("construct", ACCEPTED, ids=lambda each: each.make.__name__)
def test_index_equals_the_database_after_each_change_in_a_session(construct: Construct, engine: Engine) -> None:
    made, following = started(construct, engine)
    assert bool(made.changes) == (construct.sessions == YES)
    assert bool(made.statements) == (construct.bulk == YES)
    sessions = made.registry.capture(type("Captured", (Session,), {}))
    with sessions(engine) as session:
        made.start(session)
        session.commit()
        exact(following)
        assert following.index
        for change in made.changes:
            change(session)
            session.commit()
            exact(following)
        for statement in made.statements:
            session.execute(statement)
            session.commit()
            exact(following)


@pytest.mark.parametrize("construct", ACCEPTED, ids=lambda each: each.make.__name__)
def test_index_equals_the_database_after_each_change_that_triggers_note(construct: Construct, engine: Engine) -> None:
    made, following = started(construct, engine)
    assert bool(made.sql) == (construct.triggers == YES)
    if construct.triggers != YES:
        with engine.begin() as connection, pytest.raises(ConfigurationError, match=re.escape(construct.triggers)):
            triggers.install(connection, made.registry)
        return
    with engine.begin() as connection:
        triggers.install(connection, made.registry)
    with Session(engine) as session:
        made.start(session)
        session.commit()
        exact(following)
        for statement in [*made.statements, *map(text, made.sql)]:
            session.execute(statement)
            session.commit()
            exact(following)
