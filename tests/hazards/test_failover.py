"""A PostgreSQL server fails over to a standby that lacks what was committed last."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import LIMIT_S
from tests.support.outbox import Outbox
from tests.support.places import EmbeddedPlace
from tests.support.postgres import Postgres
from tests.support.relays import Relays, until

pytestmark = pytest.mark.slow


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A server of its own: what it had last is lost."""
    request.getfixturevalue("postgres")  # skips, or fails, where none can be had
    running = Postgres()
    yield running
    running.close()


def test_relay_ends_after_a_failover_and_none_starts_before_the_epoch_is_advanced(
    server: Postgres, outbox: Outbox, relays: Relays, place: EmbeddedPlace
) -> None:
    outbox.index("contacts", "c1", {"name": "Ada"})
    relay = relays.start()
    until(lambda: outbox.counts()["done"] == 1, "the first row is delivered")
    server.copy()
    outbox.index("contacts", "c2", {"name": "lost"})
    until(lambda: outbox.counts()["done"] == 2, "what the standby lacks is delivered")
    server.fail_over()

    outbox.index("contacts", "c2", {"name": "Grace"})
    assert relay.wait(LIMIT_S) == 2
    assert "has failed over" in relays.log()
    assert place.get("contacts", "c2") == {"name": "lost"}, "nothing was sent with a version that was drawn before"

    for refused in (relays.call("run", "--drain"), relays.call("reindex", "--all")):
        assert refused.returncode == 2
    refused = relays.call("run", "--drain")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "the server is on timeline 00000002 now, versions were drawn on 00000001" in refused.stderr
    checked = relays.call("check")
    assert checked.returncode != 0
    assert "failover" in checked.stdout
    advanced = relays.call("epoch", "advance", "--yes")
    assert advanced.returncode == 0, advanced.stderr
    assert relays.call("run", "--drain").stderr.endswith("1 done, 0 dead\n")
    assert place.documents("contacts") == {"c1": {"name": "Ada"}, "c2": {"name": "Grace"}}
    assert "failover" not in relays.call("check").stdout


def test_second_failover_is_noticed_although_no_relay_has_started_since_the_first(
    server: Postgres, outbox: Outbox, relays: Relays, place: EmbeddedPlace
) -> None:
    outbox.index("contacts", "c1", {"name": "Ada"})
    assert relays.call("run", "--drain").returncode == 0
    server.copy()
    server.fail_over()
    assert relays.call("epoch", "advance", "--yes").returncode == 0
    server.copy()
    server.fail_over()
    outbox.index("contacts", "c1", {"name": "Grace"})
    refused = relays.call("run", "--drain")
    assert refused.returncode == 2
    assert "the server is on timeline 00000003 now, versions were drawn on 00000002" in refused.stderr
    assert place.get("contacts", "c1") == {"name": "Ada"}
