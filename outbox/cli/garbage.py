"""What the garbage collector need not look at."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports_frozen() -> Iterator[None]:
    """For long work: what was imported so far is no garbage, and is not searched for any again and again.

    Otherwise the collector takes a seventh of a busy relay's time, in the objects of SQLAlchemy and of the client.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
