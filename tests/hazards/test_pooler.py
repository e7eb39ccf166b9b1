"""A pooler in transaction mode: between applications and the server it may stand, before a relay it may not."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import make_url

from tests.support import pooler
from tests.support.outbox import Outbox
from tests.support.places import EmbeddedPlace
from tests.support.relays import Relays, until
from tests.support.writers import Writers

pytestmark = pytest.mark.slow

ROWS = 1_000  # are written at least


@pytest.fixture
def _pooler() -> None:
    if reason := pooler.unavailable_reason():
        pytest.skip(reason)


PREPARED = pytest.param(
    {},
    {"max_prepared_statements": "100"},
    id="prepared statements",
    marks=pytest.mark.skipif(
        not pooler.knows_prepared_statements(), reason="PgBouncer knows statements that clients prepare since 1.21"
    ),
)


@pytest.mark.usefixtures("_pooler")
@pytest.mark.parametrize(
    ("connect_args", "given"), [pytest.param({"prepare_threshold": None}, {}, id="none prepared"), PREPARED]
)
def test_writers_behind_a_pooler_in_transaction_mode_lose_nothing(
    outbox: Outbox,
    relays: Relays,
    place: EmbeddedPlace,
    chance: random.Random,
    connect_args: dict[str, object],
    given: dict[str, str],
) -> None:
    for _ in range(2):
        relays.start()
    with pooler.pooled(make_url(outbox.url), default_pool_size="4", **given) as url:  # of eight writers
        behind = url.render_as_string(hide_password=False)
        writers = Writers(outbox, random.Random(chance.random()), behind, connect_args=connect_args)
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(writers.run)
            try:
                until(lambda: outbox.counts()["done"] >= ROWS, "so many rows were written and delivered")
            finally:
                writers.stop.set()
            writing.result()
    relays.stop()
    assert writers.assert_delivered(relays, place) >= ROWS


@pytest.mark.usefixtures("_pooler")
def test_relay_behind_a_pooler_is_refused_unless_its_session_is_its_own(outbox: Outbox, relays: Relays) -> None:
    server = make_url(outbox.url)
    for given in ({}, {"ignore_startup_parameters": "options"}):  # as it comes it refuses the settings of our sessions
        with pooler.pooled(server, **given) as url:
            behind = url.render_as_string(hide_password=False)
            for refused in (["run", "--drain"], ["reindex", "--all"]):
                ended = relays.call(*refused, OUTBOX_DATABASE_URL=behind)
                assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
                assert "through a connection pooler that" in ended.stderr
                assert "have OUTBOX_DATABASE_URL name the server itself" in ended.stderr
            checked = relays.call("check", OUTBOX_DATABASE_URL=behind)
            assert checked.returncode == 1
            assert "fail  connection: " in checked.stdout
    with pooler.pooled(server, ignore_startup_parameters="options", pool_mode="session") as url:
        drained = relays.call("run", "--drain", OUTBOX_DATABASE_URL=url.render_as_string(hide_password=False))
        assert drained.returncode == 0, drained.stderr
    assert "connection: " not in relays.call("check").stdout
