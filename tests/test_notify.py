"""What operators are told of, provoked for real: received once, by a receiver that fails first or hangs."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from outbox import EntityRegistry
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.errors import ConfigurationError
from outbox.maintenance.notices import Notices
from outbox.maintenance.notifier import MOST_EVENTS, Kind, Notifier
from outbox.maintenance.scheduler import Maintenance
from outbox.maintenance.webhook import Webhook
from outbox.mappings import DriftWatch
from outbox.relay import Relay
from outbox.settings import load
from outbox.store.models import now_ms
from outbox.verify import Verification
from tests.admin.world import Base, Contact
from tests.support import LIMIT_S
from tests.support.outbox import Outbox, settings
from tests.support.relays import Relays, until
from tests.support.webhook import Receiver, receiver

SECRET = "0123456789abcdef"

GUIDE = Path(__file__).parent.parent / "docs" / "how-to" / "notify.md"

SOON = (0.01, 0.01, 0.01)


@pytest.fixture
def failing() -> Iterator[Receiver]:
    """Fails twice, then takes what it is sent."""
    with receiver(failing=2) as running:
        yield running


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[EmbeddedDestination]:
    made = EmbeddedDestination(tmp_path / "search.db", timeout=1)  # what its outage takes
    yield made
    made.close()


class Watched:
    """A relay that the test drives, and what tells of it."""

    def __init__(
        self,
        outbox: Outbox,
        relay: Relay,
        receiver: Receiver,
        destination: EmbeddedDestination,
        registry: EntityRegistry | None = None,
    ) -> None:
        self.outbox, self.relay, self.registry = outbox, relay, registry or EntityRegistry()
        notifier = Notifier(Webhook(receiver.url, SECRET), {"relay": 1}, every_s=0.05, pauses_s=SOON)
        mappings = DriftWatch(destination, self.registry).look
        self.notices = Notices(notifier, 1, relay.breakers, relay.deaths, mappings, silent_ms=30_000)
        self.store = outbox.store()
        self.notices.start()
        self.look()

    def look(self) -> None:
        self.notices.look(self.store)

    def maintenance(self, verification: Any = None, **given: Any) -> Maintenance:
        return Maintenance(
            self.outbox.engine, 1, settings(**given), self.relay.breakers, verification, notices=self.notices
        )


@pytest.fixture
def watched(outbox: Outbox, destination: EmbeddedDestination, failing: Receiver) -> Iterator[Watched]:
    made = Watched(outbox, outbox.relay(destination, breaker_first_pause=0.01), failing, destination)
    yield made
    made.notices.stop()


def once(failing: Receiver, kind: str) -> dict[str, Any]:
    """The only event of that kind: the two tries that failed are the same post."""
    until(lambda: failing.events(kind), f"a notification of kind {kind} is taken")
    (event,) = failing.events(kind)
    assert len({json.loads(body)["id"] for body, _ in failing.tried[:3]}) == 1
    return event


def rejected(outbox: Outbox) -> int:
    """A row that is dead at its first try."""
    return outbox.put_raw("NoSuchName", "1", "{}")


def test_rows_that_die_are_told_of_once(watched: Watched, outbox: Outbox, failing: Receiver) -> None:
    for _ in range(3):
        rejected(outbox)
    outbox.index("contacts", "c1", {"name": "Ada"})
    while watched.relay.run_once():
        pass
    watched.look()
    watched.look()
    event = once(failing, "dead")
    assert (event["index"], event["errorType"], event["rows"]) == ("NoSuchName", "illegal_index_name", 3)
    (post,) = failing.taken
    assert post["text"] == (
        "outbox-relay: 3 rows died in NoSuchName (illegal_index_name): see 'outbox-relay dead list'"
    )
    assert (post["kind"], post["relay"], post["leftOff"]) == ("dead", 1, 0)


def test_outage_is_told_of_when_it_begins_and_when_it_ends(watched: Watched, outbox: Outbox, failing: Receiver) -> None:
    outbox.index("contacts", "c1", {})
    assert watched.relay.run_once() == 1
    outbox.index("contacts", "c1", {})
    with closing(sqlite3.connect("search.db", isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        watched.relay.run_once()
        watched.look()
        begun = once(failing, "outage")
        assert begun["state"] == "begun" and "locked" in begun["reason"]
        watched.look()
    until(watched.relay.run_once, "the destination answers again")
    watched.look()
    until(lambda: len(failing.events("outage")) == 2, "its end is told of")
    assert failing.events("outage")[1]["state"] == "ended"
    assert len(failing.taken) == 2


def test_index_that_takes_no_rows_is_told_of(watched: Watched, outbox: Outbox, failing: Receiver) -> None:
    outbox.raw(
        "INSERT INTO outbox_events (action, index_name, document_id, entity) VALUES ('refresh', 'deals', '1', 'Deal')"
    )
    watched.relay.run_once()
    watched.look()
    event = once(failing, "block")
    assert (event["state"], event["index"]) == ("begun", "deals") and "OUTBOX_ENTITIES" in event["reason"]
    outbox.raw("DELETE FROM outbox_events")

    def over() -> bool:
        watched.relay.run_once()
        watched.look()
        return len(failing.events("block")) == 2

    until(over, "its end is told of")
    assert failing.events("block")[1]["state"] == "ended"


def test_growth_past_a_limit_is_told_of(watched: Watched, outbox: Outbox, failing: Receiver) -> None:
    maintenance = watched.maintenance(warn_rows=2)
    outbox.index_many("contacts", [("c1", {}), ("c2", {})])
    maintenance.watch(watched.store)
    maintenance.watch(watched.store)
    event = once(failing, "growth")
    assert (event["state"], event["name"], event["value"], event["limit"]) == ("begun", "rows", 2, 2)
    outbox.raw("DELETE FROM outbox_events")
    maintenance.watch(watched.store)
    until(lambda: [each["state"] for each in failing.events("growth")] == ["begun", "ended"], "it is back below it")


def drifted(watched: Watched, destination: EmbeddedDestination) -> None:
    """A contact that the index does not have."""
    Base.metadata.create_all(watched.outbox.engine)
    watched.registry.add(Contact, name="Contact", index="contacts", fields=["name"])
    with watched.outbox.sessions.begin() as session:
        session.add(Contact(id=1, name="Ada"))
    watched.outbox.store().register_index("contacts", destination.ensure_index("contacts"))


def by_the_schedule(watched: Watched, verification: Verification) -> None:
    watched.maintenance(lambda _: verification, verify_schedule="0 3 * * *").verify()


def by_an_operator(_watched: Watched, verification: Verification) -> None:
    for _ in verification.recorded("ada at terminal"):
        pass


@pytest.mark.parametrize("how", [by_the_schedule, by_an_operator])
def test_drift_is_told_of_whoever_found_it(
    watched: Watched,
    destination: EmbeddedDestination,
    failing: Receiver,
    how: Callable[[Watched, Verification], None],
) -> None:
    drifted(watched, destination)
    how(watched, Verification(watched.outbox.store(), destination, watched.registry))
    watched.look()
    watched.look()
    event = once(failing, "drift")
    assert (event["entities"], event["missing"], event["extra"]) == (["Contact"], 1, 0)
    assert event["found"] == "documents of Contact differ from the database: 1 missing"


def test_index_that_is_not_as_registered_is_told_of(
    outbox: Outbox, destination: EmbeddedDestination, failing: Receiver
) -> None:
    registry = EntityRegistry()
    mappings = {"properties": {"name": {"type": "keyword"}}}
    registry.add(Contact, index="contacts", fields=["name"], mappings=mappings)
    target = destination.ensure_index("contacts", {"properties": {"name": {"type": "text"}}})
    outbox.store().register_index("contacts", target)
    watched = Watched(outbox, outbox.relay(destination), failing, destination, registry)
    watched.look()
    event = once(failing, "drift")
    assert event["index"] == "contacts" and "name is text, registered as keyword" in event["found"]
    watched.notices.stop()


def test_of_two_relays_one_tells_of_what_both_see(
    watched: Watched, outbox: Outbox, destination: EmbeddedDestination, failing: Receiver
) -> None:
    for pid in (1, 2):
        outbox.store().register_relay("host", pid, "1.0", now_ms())
    other = Notices(
        Notifier(Webhook(failing.url, SECRET), {"relay": 2}, every_s=0.05, pauses_s=SOON),
        2,
        list,
        dict,
        silent_ms=30_000,
    )
    other.start()
    other.look(watched.store)
    drifted(watched, destination)
    by_an_operator(watched, Verification(outbox.store(), destination, watched.registry))
    other.look(watched.store)
    watched.look()
    once(failing, "drift")
    other.stop()
    assert [post["relay"] for post in failing.taken] == [1]


# -- posts ------------------------------------------------------------------------------------------------------------


def test_what_comes_within_the_minute_is_one_more_post(failing: Receiver) -> None:
    notifier = Notifier(Webhook(failing.url, None), {}, every_s=1_000, pauses_s=SOON)
    notifier.start()
    notifier.add(Kind.DEAD, index="a", errorType="x", rows=1)
    until(lambda: failing.taken, "the first is sent at once")
    for number in range(MOST_EVENTS + 7):
        notifier.add(Kind.DEAD, index="a", errorType="x", rows=1)
        notifier.add(Kind.BLOCK, index=f"i{number}", state="begun", reason="r")
    until(lambda: len(failing.taken) == 2, "another kind has a minute of its own")
    assert not [post for post in failing.taken[1:] if post["kind"] == "dead"]
    notifier.stop()  # which sends what is left
    assert failing.events("dead") == [{"index": "a", "errorType": "x", "rows": rows} for rows in (1, MOST_EVENTS + 7)]
    blocks = [post for post in failing.taken if post["kind"] == "block"]
    assert sum(len(post["events"]) + post["leftOff"] for post in blocks) == MOST_EVENTS + 7
    assert max(len(post["events"]) for post in blocks) <= MOST_EVENTS
    assert "headers" not in failing.taken[0] and "x-outbox-signature" not in failing.tried[0][1]


def test_receiver_checks_the_signature_as_the_guide_says(watched: Watched, outbox: Outbox, failing: Receiver) -> None:
    rejected(outbox)
    watched.relay.run_once()
    watched.look()
    once(failing, "dead")
    guide: dict[str, Any] = {}
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    exec(code, guide)
    for body, headers in failing.tried:
        given = {name.title(): value for name, value in headers.items()}
        assert guide["is_genuine"](SECRET, given, body)
        assert not guide["is_genuine"]("another secret", given, body)
        assert not guide["is_genuine"](SECRET, given, body + b" ")
        assert not guide["is_genuine"](SECRET, given | {"X-Outbox-Timestamp": "1"}, body)
        assert headers["content-type"] == "application/json"


def test_receiver_that_never_takes_anything_is_given_up_with_one_line(failing: Receiver, logged: list[str]) -> None:
    failing.failing = 1_000
    notifier = Notifier(Webhook(failing.url.replace("//", "//ada:pa%40ss@"), SECRET), {}, pauses_s=SOON)
    notifier.start()
    notifier.add(Kind.DEAD, index="a", errorType="x", rows=1)
    until(lambda: logged, "it is given up")
    notifier.stop()
    (line,) = logged
    assert "notification of kind dead not taken by http://127.0.0.1:" in line and "it answered 503" in line
    assert not [word for word in ("s3cret", "ada", "pa%40ss", "pa@ss", SECRET) if word in line]
    assert len(failing.tried) == len(SOON) + 1
    assert failing.tried[0][1]["authorization"] == "Basic YWRhOnBhQHNz"


def test_host_that_no_name_server_can_be_asked_for_is_given_up_with_one_line(logged: list[str]) -> None:
    notifier = Notifier(Webhook("http://ada:s3cret@a..b/hook", SECRET), {}, pauses_s=SOON)
    notifier.start()
    notifier.add(Kind.DEAD, index="a", errorType="x", rows=1)
    until(lambda: logged, "it is given up")
    notifier.stop()
    (line,) = logged
    assert "notification of kind dead not taken by http://a..b" in line
    assert "s3cret" not in line


@pytest.fixture
def logged() -> list[str]:
    from loguru import logger

    lines: list[str] = []
    logger.add(lines.append, format="{message}", level="WARNING")  # type: ignore[arg-type]
    return lines


def test_receiver_that_hangs_keeps_nothing_waiting(outbox: Outbox, destination: EmbeddedDestination) -> None:
    with receiver() as hanging:
        hanging.hang = threading.Event()
        relay = outbox.relay(destination)
        watched = Watched(outbox, relay, hanging, destination)
        rejected(outbox)
        relay.run_once()
        watched.look()
        row = outbox.index("contacts", "c1", {})
        assert relay.run_once() == 1 and outbox.state(row) == "done"
        watched.look()
        assert not hanging.taken
        hanging.hang.set()
        watched.notices.stop()
    assert hanging.events("dead")


# -- processes --------------------------------------------------------------------------------------------------------


def start(outbox: Outbox, tmp_path: Path, url: str, *arguments: str) -> Relays:
    relays = Relays(outbox, "", tmp_path)
    relays.give(
        OUTBOX_DESTINATION="embedded",
        OUTBOX_EMBEDDED_PATH=str(tmp_path / "search.db"),
        OUTBOX_NOTIFY_URL=url,
        OUTBOX_NOTIFY_SECRET=SECRET,
    )
    relays.start(*arguments)
    return relays


@pytest.mark.slow
def test_process_tells_of_what_died_and_says_which_it_is(outbox: Outbox, tmp_path: Path, failing: Receiver) -> None:
    rejected(outbox)
    relays = start(outbox, tmp_path, failing.url)
    (process,) = relays.started
    once(failing, "dead")
    (post,) = failing.taken
    assert (post["pid"], post["database"].partition(" on ")[0]) == (process.pid, str(outbox.engine.url.database))
    process.terminate()
    assert process.wait(LIMIT_S) == 0
    assert "s3cret" not in relays.log() and SECRET not in relays.log()
    relays.end()


@pytest.mark.slow
def test_process_drains_and_ends_whatever_the_receiver_does(outbox: Outbox, tmp_path: Path) -> None:
    rejected(outbox)
    rows = outbox.index_many("contacts", [(f"c{number}", {}) for number in range(3_000)])
    with receiver() as hanging:
        hanging.hang = threading.Event()
        relays = start(outbox, tmp_path, hanging.url, "--drain")
        assert relays.started[0].wait(LIMIT_S) == 1  # one row is dead
        assert {outbox.state(row) for row in rows} == {"done"}
        assert not hanging.taken
        assert "the last notifications were not taken by http://127.0.0.1" in relays.log()
    relays.end()


@pytest.mark.parametrize(
    "url", ["hooks.example", "ftp://ada:pass@hooks.example", "http://", "http://h/a b", "http://h:x/"]
)
def test_address_that_is_none_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("OUTBOX_NOTIFY_URL", url)
    with pytest.raises(ConfigurationError, match="OUTBOX_NOTIFY_URL: it is no address of http or https") as raised:
        load()
    assert "pass" not in str(raised.value)
