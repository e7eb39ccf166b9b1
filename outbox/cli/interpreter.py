"""How Python itself behaves in a process that works for long."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

SWITCH_S: Final = 0.000_5
"""How long a thread may keep the interpreter while another wants it. With Python's 5 ms the thread that has the write
lock waits so long between two of its statements for one that makes documents, and applications wait for both."""


@contextmanager
def tuned() -> Iterator[None]:
    """For long work: threads take turns often, and what was imported so far is not searched for garbage.

    Otherwise the collector takes a seventh of a busy relay's time, in the objects of SQLAlchemy and of the client.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(before)
