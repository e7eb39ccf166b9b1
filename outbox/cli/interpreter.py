"""How Python itself behaves in a process that works for long."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

SWITCH_S: Final = 0.000_5
"""How long a thread may keep the interpreter while another wants it. With Python's 5 ms the thread that has the write
lock waits so long between two of its statements for one that makes documents, and applications wait for both."""

_M_MMAP_THRESHOLD: Final = -3  # in glibc's malloc.h
RETURNED_BYTES: Final = 131_072
"""What is as large as this goes back to the system at once when it is freed. That is glibc's own limit at first, but it
raises it up to 32 MB as large blocks are freed, and documents of 300 KB then leave holes: 350 MB in place of 150."""


@contextmanager
def tuned() -> Iterator[None]:
    """For long work: threads take turns often, large blocks of memory are given back when they are freed (where the C
    library is glibc; from then on), and what was imported so far is not searched for garbage.

    Otherwise the collector takes a seventh of a busy relay's time, in the objects of SQLAlchemy and of the client.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, RETURNED_BYTES)
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(before)
