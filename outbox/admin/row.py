"""One row, with its document and all that has become of it: the same for the API and the page."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from outbox.admin import formats
from outbox.admin.chosen import NotFound
from outbox.admin.hidden import content, without_value
from outbox.admin.shapes import Event, Model
from outbox.documents import as_json
from outbox.store import history
from outbox.store.models import EPOCH_STEP
from outbox.store.shown import moment
from outbox.store.store import Store


class Step(Model):
    """One step of a row on its way."""

    step: Literal["written", "failed", "retried", "waiting", "claimed", "done", "dead"]
    at: datetime | None = Field(description="null: nothing says when, or it is so now")
    until: datetime | None = Field(description="until when it waits, or its claim holds")
    text: str
    attempt: int | None = Field(description="of a failed one: the how manieth that failed")
    relay: int | None
    by: str | None = Field(description="which operator")
    error_type: str | None
    error_field: str | None = Field(description="the field that the error names")
    error: str | None

    @classmethod
    def of(cls, step: history.Step, hide: Collection[str]) -> Step:
        return cls(
            step=step.step,
            at=None if step.at is None else moment(step.at),
            until=None if step.until is None else moment(step.until),
            text=step.text,
            attempt=step.attempt,
            relay=step.relay,
            by=step.by,
            error_type=step.error_type,
            error_field=step.error_field,
            error=without_value(step.error, hide),
        )


class EventWithDocument(Event):
    document: Any = Field(
        description="what was written with the row, each digit as it was; null for deletes and refreshes"
    )
    timeline: list[Step] = Field(description="what has become of it so far, the first step first")

    def as_json(self) -> str:
        """The answer of the API: pydantic has no numbers but those that Python can hold."""
        others = self.model_dump_json(by_alias=True, exclude={"document"})
        return f'{others[:-1]},"document":{as_json(self.document)}}}'


def found(store: Store, number: int, hide: Collection[str]) -> EventWithDocument:
    """Raises `NotFound`, which says who removed the row if the audit does."""
    row = store.event(number) if 0 < number <= EPOCH_STEP else None
    if row is None:
        removed = history.removal_of(store, number)
        why = "finished rows are removed after OUTBOX_RETENTION_HOURS"
        if removed is not None and removed.at is not None:
            why = f"{removed.text} at {formats.instant(moment(removed.at))}"
        raise NotFound(f"row {number} does not exist; {why}")
    return EventWithDocument(
        **Event.columns(row, hide),
        document=content(row["document"], hide),
        timeline=[Step.of(each, hide) for each in history.of_row(store, row)],
    )
