"""What SIGTERM, SIGHUP and Ctrl-C do."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def on_stop_signals(*stop: Callable[[], None]) -> None:
    """Have the first SIGTERM, SIGHUP or Ctrl-C call each of `stop`; a second one ends the process at once."""

    def first(_number: int, _frame: Any) -> None:
        for call in stop:
            call()
        for each in (*_terminating(), signal.SIGINT):
            signal.signal(each, lambda second, _frame: os._exit(128 + second))

    for each in (*_terminating(), signal.SIGINT):
        signal.signal(each, first)


def _terminating() -> list[signal.Signals]:
    """SIGHUP, which a terminal sends when it is closed, does as SIGTERM, unless it was ignored at start (nohup)."""
    hung_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, *hung_up]


@contextmanager
def unwound_on_sigterm() -> Iterator[None]:
    """SIGTERM and SIGHUP do as Ctrl-C does: the stack is unwound, so that what is held is released.

    Exits with 128 and the number of the signal.
    """

    def leave(number: int, _frame: Any) -> None:
        sys.exit(128 + number)

    before = {each: signal.signal(each, leave) for each in _terminating()}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
