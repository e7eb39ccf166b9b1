"""Signals end a command at any moment, also as the first process of a container, and unless they were ignored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import LIMIT_S
from tests.support.outbox import Outbox
from tests.support.relays import Relays, until

FIRST_OF_A_CONTAINER = ["unshare", "--pid", "--fork", "--kill-child"]
ROOT = Path(__file__).parents[1]


@pytest.fixture
def embedded_relays(outbox: Outbox, tmp_path: Path) -> Iterator[Relays]:
    made = Relays(outbox, "", tmp_path)
    made.give(OUTBOX_DESTINATION="embedded", OUTBOX_EMBEDDED_PATH=str(tmp_path / "search.db"))
    yield made
    made.end()


@contextmanager
def hanging_up(handler: signal.Handlers) -> Iterator[None]:
    """What a process that is started meanwhile finds for SIGHUP, whatever these tests themselves were started with."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_first_process_of_a_container_ends_while_it_still_loads(number: signal.Signals, tmp_path: Path) -> None:
    if subprocess.run([*FIRST_OF_A_CONTAINER, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make a container")
    (tmp_path / "outbox.py").write_text(
        f"import os, signal, time\nassert os.getpid() == 1\nos.kill(1, {number:d})\ntime.sleep({LIMIT_S})\n"
    )
    with hanging_up(signal.SIG_DFL):
        ended = subprocess.run(
            [*FIRST_OF_A_CONTAINER, sys.executable, "-c", "from outbox_relay import main; main()", "run"],
            env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
            timeout=LIMIT_S,
            check=False,
        )
    assert ended.returncode == 128 + number


def test_relay_of_a_terminal_that_was_closed_gives_back_its_rows_and_ends(
    outbox: Outbox, embedded_relays: Relays
) -> None:
    with hanging_up(signal.SIG_DFL):
        relay = embedded_relays.start()
    until(lambda: "delivers" in embedded_relays.log(), "the relay has started")
    relay.send_signal(signal.SIGHUP)
    assert relay.wait(LIMIT_S) == 0
    assert embedded_relays.log().endswith("0 done, 0 dead\n")
    assert outbox.relays() == []


def test_relay_under_nohup_outlives_its_terminal(outbox: Outbox, embedded_relays: Relays) -> None:
    with hanging_up(signal.SIG_IGN):
        relay = embedded_relays.start()
    until(lambda: "delivers" in embedded_relays.log(), "the relay has started")
    relay.send_signal(signal.SIGHUP)
    row = outbox.index("contacts", "c1", {})
    until(lambda: outbox.state(row) == "done", "the relay goes on")
    relay.terminate()
    assert relay.wait(LIMIT_S) == 0
