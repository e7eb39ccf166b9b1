"""The relay's wait ends when it should, whatever interrupts it."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from outbox.relay.wakeup import Wakeup


@pytest.fixture
def slow_handler() -> Iterator[None]:
    """The handler of SIGALRM outlasts every single look."""

    def handle(*_: Any) -> None:
        time.sleep(0.05)

    before = signal.signal(signal.SIGALRM, handle)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("slow_handler")
def test_signal_at_the_end_of_a_look_does_not_make_the_wait_endless() -> None:
    answers: queue.Queue[str] = queue.Queue()
    rescue = threading.Timer(60, answers.put, ["only this ended it"])
    rescue.start()
    signal.setitimer(signal.ITIMER_REAL, 0.005)
    assert Wakeup(lambda: 0).wait(answers, 0.02, lambda: False) is None
    rescue.cancel()


def test_commit_and_stop_end_the_wait_and_an_answer_is_returned() -> None:
    answers: queue.Queue[str] = queue.Queue()
    commits = iter([0, 0, 1])
    assert Wakeup(lambda: next(commits)).wait(answers, 60, lambda: False) is None
    assert Wakeup(lambda: 0).wait(answers, 60, lambda: True) is None
    answers.put("answer")
    assert Wakeup(lambda: 0).wait(answers, 0, lambda: True) == "answer"
