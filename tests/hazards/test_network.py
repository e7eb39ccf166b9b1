"""A relay that is cut off from the PostgreSQL server while it holds claims, and comes back."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import LIMIT_S
from tests.support.networks import Namespace, namespaces
from tests.support.outbox import Outbox
from tests.support.places import EmbeddedPlace
from tests.support.postgres import Postgres
from tests.support.relays import Relays, until

pytestmark = pytest.mark.slow

DOCUMENTS = [str(number) for number in range(20)]


@pytest.fixture
def hosts(request: pytest.FixtureRequest) -> Iterator[list[Namespace]]:
    request.getfixturevalue("postgres")  # skips, or fails, where none can be had
    with namespaces(2) as made:
        yield made


@pytest.fixture
def server(hosts: list[Namespace]) -> Iterator[Postgres]:
    running = Postgres(listen=["127.0.0.1", *(host.address for host in hosts)])
    yield running
    running.close()


def all_with(name: str) -> dict[str, dict[str, str]]:
    return {each: {"name": name} for each in DOCUMENTS}


@pytest.mark.parametrize("stopped", [False, True], ids=["goes on meanwhile", "is stopped meanwhile"])
def test_relay_that_is_cut_off_with_its_claims_changes_nothing_when_it_comes_back(
    hosts: list[Namespace], outbox: Outbox, relays: Relays, place: EmbeddedPlace, stopped: bool
) -> None:
    def write(name: str) -> None:
        outbox.index_many("contacts", list(all_with(name).items()))

    def start(host: Namespace) -> None:
        url = outbox.engine.url.set(host=host.address).render_as_string(hide_password=False)
        relays.start(within=host.within, OUTBOX_DATABASE_URL=url, OUTBOX_REQUEST_TIMEOUT="60", OUTBOX_LEASE="600")

    def all_done() -> bool:
        counts = outbox.counts()
        return counts["done"] == sum(counts.values())

    first, second = hosts
    start(first)
    write("first")
    until(all_done, "the first relay delivers")
    place.away()
    write("old")
    until(lambda: outbox.counts()["claimed"] == len(DOCUMENTS), "the first relay has claimed all of them")
    first.cut()
    if stopped:
        relays.started[0].send_signal(signal.SIGSTOP)
        # Before: a process that stops a moment later may have taken the lock of the file by then, for good.
        status = Path(f"/proc/{relays.started[0].pid}/status")
        until(lambda: "State:\tT" in status.read_text(), "the first relay is stopped")
    place.back()
    start(second)
    write("new")
    until(all_done, "the second relay has taken over")
    assert place.documents("contacts") == all_with("new")

    first.join()
    relays.started[0].send_signal(signal.SIGCONT)
    until(lambda: "20 rows were claimed by another relay meanwhile" in relays.log(0), "the first relay is back")
    assert place.documents("contacts") == all_with("new")
    relays.started[1].terminate()
    assert relays.started[1].wait(LIMIT_S) == 0, relays.log(1)
    write("newest")
    until(all_done, "the first relay delivers")
    relays.started[0].terminate()
    assert relays.started[0].wait(LIMIT_S) == 0, relays.log(0)
    assert place.documents("contacts") == all_with("newest")
    assert outbox.counts() == {"pending": 0, "claimed": 0, "done": 4 * len(DOCUMENTS), "dead": 0}
    print(relays.log(0))
    assert "Traceback" not in relays.log(0)
