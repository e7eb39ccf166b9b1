"""What SIGTERM and Ctrl-C do."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def on_stop_signals(*stop: Callable[[], None]) -> None:
    """Have the first SIGTERM or Ctrl-C call each of `stop`; a second one ends the process at once."""

    def first(_number: int, _frame: Any) -> None:
        for call in stop:
            call()
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda second, _frame: os._exit(128 + second))

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, first)


@contextmanager
def unwound_on_sigterm() -> Iterator[None]:
    """SIGTERM does as Ctrl-C does: the stack is unwound, so that what is held is released; exits with 143."""

    def leave(number: int, _frame: Any) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
