"""What a verification says of a document that is not as the database has it."""

from __future__ import annotations

import enum


class DriftKind(enum.StrEnum):
    """What can be wrong with a document."""

    MISSING = "missing"  # the database has it, the index has not
    DIFFERENT = "different"
    EXTRA = "extra"  # the index has it, and no row of the database makes it
    VERSION = "version"  # the same in both, but of a version above any that the outbox has given: it takes no change
    FAILED = "failed"  # the database's own document cannot be made, so that there is nothing to compare


def needs_somebody(drift: int, repaired: int) -> bool:
    """Whether documents are wrong for which no row was written: `FAILED` ones, or without `--repair`."""
    return drift > repaired
