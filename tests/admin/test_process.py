"""The admin server beside a relay in one process: neither takes the other along, or keeps it waiting."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from outbox.destinations.embedded.destination import EmbeddedDestination
from tests.support import LIMIT_S
from tests.support.outbox import Outbox
from tests.support.relays import until
from tests.support.serving import Process

MAIN = "from outbox.cli import main; main()"

Start = Callable[..., Process]


@pytest.fixture
def start(outbox: Outbox, tmp_path: Path) -> Iterator[Start]:
    """Starts `outbox-relay run --admin`; those that a test leaves are killed."""
    started = []

    def begin(*arguments: str, before: str = "", **given: str) -> Process:
        running = Process(
            tmp_path,
            "run",
            "--admin",
            *arguments,
            command=[sys.executable, "-c", f"{before}; {MAIN}" if before else MAIN],
            OUTBOX_DATABASE_URL=outbox.url,
            OUTBOX_DESTINATION="embedded",
            OUTBOX_EMBEDDED_PATH=str(tmp_path / "search.db"),
            **given,
        )
        started.append(running)
        return running

    yield begin
    for each in started:
        each.end(signal.SIGKILL)


def delivered(outbox: Outbox, row: int) -> None:
    until(lambda: outbox.state(row) == "done", f"row {row} is delivered")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_relay_and_admin_server(outbox: Outbox, start: Start, number: signal.Signals) -> None:
    running = start()
    delivered(outbox, outbox.index("contacts", "c1", {"name": "Ada"}))
    assert httpx.get(f"{running.url}/health", timeout=LIMIT_S).json()["relays"] == 1
    assert running.end(number) == 0
    assert outbox.relays() == []
    assert "Traceback" not in running.log
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{running.url}/health/live", timeout=LIMIT_S)


@pytest.mark.slow
def test_admin_server_that_fails_leaves_the_relay_alone(outbox: Outbox, start: Start) -> None:
    fails = "import uvicorn; uvicorn.Server.run = lambda *_a, **_k: 1 / 0"
    running = start(before=fails)
    delivered(outbox, outbox.index("contacts", "c1", {"name": "Ada"}))
    assert "the admin server has ended: ZeroDivisionError" in running.log
    assert running.end() == 0


@pytest.mark.slow
def test_requests_that_all_wait_leave_relay_and_probe_alone(outbox: Outbox, start: Start) -> None:
    """More at a time than there are threads, all of which want the lock that somebody else holds."""
    running = start()
    lock = outbox.engine.raw_connection()
    lock.cursor().execute("BEGIN IMMEDIATE")

    def pause() -> None:
        with httpx.Client(timeout=LIMIT_S) as client:
            client.post(f"{running.url}/api/v1/admin/resume")

    threads = [threading.Thread(target=pause) for _ in range(60)]
    for thread in threads:
        thread.start()
    for _ in range(5):  # and all of it before those give up, after 30 s
        assert httpx.get(f"{running.url}/health/live", timeout=20).status_code == 200
    lock.cursor().execute("ROLLBACK")
    lock.close()
    for thread in threads:
        thread.join()
    delivered(outbox, outbox.index("contacts", "c1", {"name": "Ada"}))
    assert running.end() == 0


@pytest.mark.slow
def test_busy_relay_lets_the_admin_server_answer(outbox: Outbox, start: Start, tmp_path: Path) -> None:
    rows = outbox.index_many("contacts", [(f"c{n}", {"name": f"Ada {n}", "text": "word " * 50}) for n in range(20_000)])
    running = start(OUTBOX_LOG_OPERATIONS="false", OUTBOX_BATCH_ROWS="200")
    longest, answers, began_at = 0.0, 0, time.monotonic()
    with httpx.Client(base_url=running.url, timeout=LIMIT_S) as client:
        while outbox.state(rows[-1]) != "done":
            for path in ("/health", "/metrics", "/api/v1/admin/events?limit=100"):
                began = time.monotonic()
                assert client.get(path).status_code == 200
                longest, answers = max(longest, time.monotonic() - began), answers + 1
    assert answers >= 3, "the relay was done before it was asked"
    assert longest < max(5, (time.monotonic() - began_at) / 2)  # not only when the relay was done
    assert running.end() == 0
    search = EmbeddedDestination(tmp_path / "search.db")
    assert len(search.search("contacts", "ada", limit=5)) == 5
    search.close()
