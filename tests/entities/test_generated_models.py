"""Models that nobody wrote: what is registered of them is exact, whichever way a session changes their rows."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, note, settings, strategies
from hypothesis.internal.conjecture import engine
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from outbox import sqlite, triggers
from outbox.errors import ConfigurationError
from outbox.store import models
from outbox.testing import OutboxTester
from tests.entities.drawn.history import Application, Doing, Step, histories
from tests.entities.drawn.mapping import Mapped
from tests.entities.drawn.models import Col, Indexed, Made, Model, World, worlds
from tests.entities.drawn.truth import expected, held, in_one_order
from tests.entities.drawn.types import value

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "300"))
SHRINK_FOR_S = 40


def play(world: World, history: list[Step], directory: Path) -> bool:
    """Whether what was drawn may be registered; then everything is compared, after each commit."""
    note("\n".join(map(repr, (*world.models, *world.entities))))
    mapped = Mapped(world)
    database = create_engine(f"sqlite:///{directory / 'app.db'}")
    try:
        registry = mapped.registered()
    except ConfigurationError as refused:
        note(f"refused: {refused}")
        return False
    else:
        sqlite.prepare(database)
        models.metadata.create_all(database)
        mapped.base.metadata.create_all(database)
        sessions = sessionmaker(database, expire_on_commit=world.expire, autoflush=world.autoflush)
        registry.capture(sessions)
        if world.triggers:
            with database.begin() as connection:
                triggers.install(connection, registry)
        application = Application(mapped, database, sessions)
        with OutboxTester(database, registry) as outbox:
            application.populate()
            for step in [*history, Step("commit", 0, 0, 0, 0, False)]:
                note(repr(step))
                application.do(step)
                if not application.session.in_transaction():
                    outbox.drain()
                    assert held(mapped, outbox.destination) == expected(mapped, database)
        application.close()
        return True
    finally:
        database.dispose()
        mapped.dispose()


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")  # of histories that no application should have
@pytest.mark.parametrize("examples", [10, pytest.param(EXAMPLES, marks=pytest.mark.slow)])
def test_documents_of_any_models_equal_the_rows_after_any_history(
    examples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MAX_SHRINKING_SECONDS", SHRINK_FOR_S)  # what is found is printed in any case
    registered: Counter[bool] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(worlds(), histories())
    def play_it(world: World, history: list[Step]) -> None:
        with tempfile.TemporaryDirectory() as directory:
            registered[play(world, history, Path(directory))] += 1

    play_it()
    assert registered[False] <= registered.total() / 3, f"{registered[False]} of {registered.total()} were refused"


def test_members_compare_equal_in_whatever_order_their_fields_are_named() -> None:
    members = [{"a": 1, "b": 2}, {"a": 2, "b": 1}]
    named_otherwise = [{"b": 2, "a": 1}, {"b": 1, "a": 2}]
    assert in_one_order(named_otherwise) == in_one_order(members)


@given(strategies.sampled_from(("bytes", "pickle")))
def test_an_expression_over_bytes_that_are_no_text_can_be_read(type_: str) -> None:
    column, made = Col("c0", type_), Made("x0", "expression", "c0")
    model = Model("M0", (Col("k0", "int", null=False),), (column,), False, (), (made,), False)
    entity = Indexed(0, None, ("k0", "x0"), "fields", None, False, None)
    with tempfile.TemporaryDirectory() as directory:
        assert play(World((model,), (), (entity,), False, True, True), [], Path(directory))


@pytest.mark.parametrize("type_", ["bytes", "pickle"])
def test_a_column_computed_of_bytes_that_are_no_text_can_be_read(type_: str) -> None:
    columns = (Col("c0", type_), Col("c1", "text", "computed"))
    model = Model("M0", (Col("k0", "int", null=False),), columns, False, (), (), False)
    mapped = Mapped(World((model,), (), (), False, True, True))
    with Session(create_engine("sqlite://")) as session:
        mapped.base.metadata.create_all(session.connection())
        session.add(mapped.classes[0](k0=1, c0=value(type_, 0)))
        session.flush()
        assert session.get_one(mapped.classes[0], 1).c1.endswith("!")
    mapped.dispose()


def test_rows_that_are_drawn_leave_computed_columns_to_the_database() -> None:
    columns = (Col("c0", "int"), Col("c1", "text", "computed"))
    world = World(
        (Model("M0", (Col("k0", "int", null=False),), columns, False, (), (), False),), (), (), False, True, True
    )
    mapped = Mapped(world)
    step = Step("add", 0, 0, 0, 0, False)
    given = [Doing(mapped, Session(), step).values(0, to) for to in range(2)]
    mapped.dispose()
    assert [each.keys() for each in given] == [{"k0", "c0"}] * 2
