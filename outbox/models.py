"""The tables of the outbox and the words that they hold, for applications and their migrations."""

from outbox.store.models import (
    EPOCH_STEP,
    VERSION_TABLE,
    Action,
    Event,
    JobState,
    Result,
    Role,
    State,
    documents,
    events,
    metadata,
    now_ms,
)

__all__ = [
    "EPOCH_STEP",
    "VERSION_TABLE",
    "Action",
    "Event",
    "JobState",
    "Result",
    "Role",
    "State",
    "documents",
    "events",
    "metadata",
    "now_ms",
]
