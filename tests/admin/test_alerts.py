"""Each alert is reached and left for real: a relay, an Elasticsearch, and what an operator sees over HTTP."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import LIMIT_S
from tests.support.outbox import Outbox
from tests.support.proxy import FaultProxy
from tests.support.relays import Relays, until
from tests.support.serving import Process

pytestmark = [pytest.mark.elasticsearch]

GOOD, BAD = {"seen": "2026-11-01"}, {"seen": "no date"}


def health(url: str) -> Any:
    return httpx.get(f"{url}/health", timeout=LIMIT_S).json()


def alerts(url: str) -> set[str]:
    return {alert["name"] for alert in health(url)["alerts"]}


class Operator:
    """A relay with the admin server in one process, as somebody sees it who has a browser."""

    def __init__(self, outbox: Outbox, relays: Relays) -> None:
        self.outbox, self.written = outbox, 0
        relays.give(OUTBOX_HEARTBEAT_INTERVAL="0.2", OUTBOX_LOG_OPERATIONS="false", OUTBOX_ADMIN_PORT="0")
        relays.start("--admin")
        found = until(lambda: re.search(r"dashboard at (\S+)/$", relays.log(), re.MULTILINE), "it says where it is")
        self.url = found[1]
        self.delivered(1)  # with the date by which the index knows its field

    def health(self) -> Any:
        return health(self.url)

    def alerts(self) -> set[str]:
        return alerts(self.url)

    def appears(self, *names: str) -> None:
        until(lambda: set(names) <= self.alerts(), f"{names} call for somebody")
        seen = self.health()
        assert seen["status"] == "alert"
        assert all(alert["text"] and alert["remedy"] for alert in seen["alerts"])

    def disappears(self, *names: str) -> None:
        until(lambda: not set(names) & self.alerts(), f"{names} call for nobody any more")

    def post(self, path: str, **body: Any) -> None:
        assert httpx.post(f"{self.url}/api/v1/admin{path}", json=body or None, timeout=LIMIT_S).status_code == 200

    def write(self, number: int, document: dict[str, str] = GOOD) -> list[int]:
        self.written += number
        return self.outbox.index_many("contacts", [(f"c{self.written - at}", document) for at in range(number)])

    def delivered(self, number: int) -> None:
        """Written and delivered, ten at a time: each goes fast, on a slow machine too."""
        for at in range(0, number, 10):
            last = self.write(min(10, number - at))[-1]
            until(lambda last=last: self.outbox.state(last) == "done", "rows are delivered")


@pytest.fixture
def operator(outbox: Outbox, relays: Relays) -> Operator:
    return Operator(outbox, relays)


def test_more_than_one_percent_of_the_rows_die(operator: Operator) -> None:
    """Less than 99 % arrive, and more than 1 % fail, until many others have arrived."""
    operator.disappears("failures", "completion")
    operator.write(3, BAD)
    operator.appears("failures", "completion")
    assert len(operator.outbox.dead()) == 3
    operator.delivered(600)
    operator.disappears("failures", "completion")


def test_less_than_99_percent_arrive_because_they_wait_too_long(operator: Operator) -> None:
    """A row that has waited for a minute is missing, one that was just written is on its way."""
    operator.post("/pause", reason="a test")
    (row,) = operator.write(1)
    operator.outbox.raw("UPDATE outbox_events SET created_at = created_at - 61000 WHERE id = :row", row=row)
    operator.appears("completion", "paused")
    operator.post("/resume")
    operator.disappears("completion", "paused")


def test_more_than_a_thousand_rows_wait(operator: Operator) -> None:
    operator.post("/pause", reason="a test")
    operator.write(999)
    operator.appears("paused")
    assert "queue_depth" not in operator.alerts()
    operator.write(2)
    operator.appears("queue_depth")
    assert operator.health()["queue"]["unfinished"] == 1_001
    operator.post("/resume")
    operator.disappears("queue_depth", "paused")


def test_rows_take_longer_than_half_a_second_on_average(operator: Operator) -> None:
    operator.delivered(10)
    operator.post("/pause", reason="a test")
    operator.write(20)
    until(lambda: operator.health()["queue"]["oldestSeconds"] > 1, "the rows have waited for a second")
    operator.post("/resume")
    operator.appears("latency")
    until(lambda: operator.delivered(50) or "latency" not in operator.alerts(), "the average has fallen")


def test_elasticsearch_does_not_answer(operator: Operator, proxy: FaultProxy) -> None:
    operator.disappears("cluster_unreachable")
    proxy.down()
    row = operator.write(1)[0]
    operator.appears("cluster_unreachable")
    until(lambda: operator.health()["destination"]["error"], "the admin server has noticed by itself")
    proxy.up()
    operator.disappears("cluster_unreachable")
    assert operator.health()["destination"]["reachable"]
    until(lambda: operator.outbox.state(row) == "done", "the row is delivered")


def test_relay_that_was_killed(outbox: Outbox, relays: Relays, tmp_path: Path) -> None:
    relays.give(OUTBOX_HEARTBEAT_INTERVAL="0.2")
    (tmp_path / "admin").mkdir()
    served = Process(
        tmp_path / "admin",
        "serve",
        OUTBOX_DATABASE_URL=outbox.url,
        OUTBOX_ELASTICSEARCH_URL=relays.url,
        OUTBOX_HEARTBEAT_INTERVAL="0.2",
    )
    relay = relays.start()
    until(outbox.relays, "the relay is listed")
    relay.send_signal(signal.SIGKILL)
    row = outbox.index("contacts", "c1", GOOD)
    until(lambda: "no_relay" in alerts(served.url), "a killed relay is none")
    relays.start()
    until(lambda: "no_relay" not in alerts(served.url), "another relay runs")
    until(lambda: outbox.state(row) == "done", "the row is delivered")
    assert served.end() == 0
