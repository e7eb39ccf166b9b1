"""What has become of one row so far, step by step: of the row, its failed attempts, and what operators did to it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from outbox.store import failures
from outbox.store.causes import NONE
from outbox.store.models import OVERTAKEN, State, unfinished
from outbox.store.store import Store

MOST_ACTS: Final = 1_000
"""Entries of the audit that are looked through; a row is retried by hand a few times at most."""

_IDS = re.compile(r" ids=([\d,]+) ")
_BY_TIME = re.compile(r" (?:older_than|died_by|written_before)=\S+(?= )")  # a row that was dead then met these, too


@dataclass(frozen=True, slots=True)
class Step:
    """`at`: when, None if nothing says so; `until`: of what lasts. `by`: which operator. `text`: all but these and the
    error."""

    step: Literal["written", "failed", "retried", "waiting", "claimed", "done", "dead"]
    at: int | None
    text: str
    until: int | None = None
    attempt: int | None = None
    relay: int | None = None
    by: str | None = None
    error_type: str | None = None
    error_field: str | None = None
    error: str | None = None


def of_row(store: Store, row: Mapping[str, Any]) -> list[Step]:
    """All steps of a row of `outbox_events`, the first one first. Some statements that read few rows each."""
    failed = failures.of_row(store, row["id"])
    steps = [Step("written", row["created_at"], "written"), *_attempts(store, row, failed)]
    now = _now(store, row)
    last = failed[-1] if failed else {}
    of_row_itself = {name: row[name] for name in ("error_type", "error_field", "error")}
    if row["error_type"] and of_row_itself != {name: last.get(name) for name in of_row_itself}:
        now = replace(now, **of_row_itself)
    elif now.step == "dead":  # the last attempt has said so
        return steps
    return [*steps, now]


def _attempts(store: Store, row: Mapping[str, Any], failed: Sequence[Mapping[str, Any]]) -> Iterator[Step]:
    """Each that failed, and each time that an operator put the row back to pending after it had died."""
    overtaken = row["state"] == State.DEAD and row["error_type"] == OVERTAKEN
    for position, each in enumerate(failed):
        died = each["state"] == State.DEAD
        where = "" if each["relay"] is None else f" on {_relay(each['relay'], each['host'], each['pid'])}"
        then = "the row died" if died else "the row was to be tried again"
        yield Step(
            "failed",
            each["failed_at"],
            f"attempt {each['attempt']} failed{where}: {then}",
            attempt=each["attempt"],
            relay=each["relay"],
            error_type=each["error_type"],
            error_field=each["error_field"],
            error=each["error"],
        )
        following = failed[position + 1]["failed_at"] if position + 1 < len(failed) else None
        tried = following is not None or row["state"] != State.DEAD or (overtaken and each["error_type"] != OVERTAKEN)
        if died and tried:
            yield _retried(store, row, each, following)


def _retried(store: Store, row: Mapping[str, Any], failed: Mapping[str, Any], before: int | None) -> Step:
    acts = store.run(
        "SELECT began_at, acted_by, about FROM outbox_audit WHERE action = 'dead retry' AND began_at >= :died"
        " AND (:before IS NULL OR began_at <= :before) AND error IS NULL ORDER BY id LIMIT :most",
        died=failed["failed_at"],
        before=before,
        most=MOST_ACTS,
    )
    for at, by, about in acts:
        if _means(about, row, failed["error_type"], failed["error_field"]):
            return Step("retried", at, f"retried by {by}", by=by)
    return Step("retried", None, "retried; the audit does not say by whom")


def _means(about: str, row: Mapping[str, Any], error_type: str | None, error_field: str | None) -> bool:
    """Whether a selection, as the audit describes it, had the row in it when that had died of this error."""
    rest = f" {about} "
    ids = _IDS.search(rest)
    if ids and str(row["id"]) in ids[1].split(","):
        rest = rest.replace(ids[0], " ", 1)
    for name, value in (
        ("document", row["document_id"]),
        ("index", row["index_name"]),
        ("tenant", row["tenant_id"]),
        ("error_type", error_type or NONE),
        ("error_field", error_field or NONE),
    ):
        rest = rest.replace(f" {name}={value} ", " ", 1)
    return _BY_TIME.sub("", rest).strip() in ("", "all")


def _now(store: Store, row: Mapping[str, Any]) -> Step:
    """What it is at the moment."""
    state, finished = row["state"], row["finished_at"]
    if state == State.DONE:
        return Step("done", finished, f"done: {row['outcome']}")
    if state == State.DEAD:
        return Step("dead", finished, f"dead as {row['error_type']}" if row["error_type"] else "dead")
    if state == State.CLAIMED:
        relay = row["claimed_by"]
        found = store.run("SELECT host, pid FROM outbox_relays WHERE id = :relay", relay=relay).one_or_none()
        name = _relay(relay, *(found or (None, None)))
        return Step("claimed", None, f"claimed: {name} has it", until=row["lease_expires_at"], relay=relay)
    if (earlier := _waits_behind(store, row)) is not None:
        text = f"waits behind row {earlier} of the same document"
        return Step("waiting", None, text, until=row["available_at"])
    if row["available_at"] is None:
        return Step("waiting", None, "waits for a relay")
    return Step("waiting", None, "waits for its next attempt", until=row["available_at"])


def _waits_behind(store: Store, row: Mapping[str, Any]) -> int | None:
    earlier: int | None = store.run(
        f"SELECT min(id) FROM outbox_events {store.dialect.indexed('held')} WHERE ({unfinished()})"
        " AND index_name = :index AND document_id = :document AND id < :id",
        index=row["index_name"],
        document=row["document_id"],
        id=row["id"],
    ).scalar_one()
    return earlier


def _relay(number: int, host: str | None, pid: int | None) -> str:
    return f"relay {number}" if host is None else f"relay {number} (pid {pid} on {host})"


def removal_of(store: Store, event_id: int) -> Step | None:
    """Who removed a row that is not there any more, if the audit names it."""
    acts = store.run(
        "SELECT began_at, acted_by, action, about FROM outbox_audit WHERE action IN ('dead discard', 'purge')"
        " AND about LIKE '%ids=%' ORDER BY id DESC LIMIT :most",
        most=MOST_ACTS,
    )
    for at, by, action, about in acts:
        ids = _IDS.search(f" {about} ")
        if ids and str(event_id) in ids[1].split(","):
            return Step("dead", at, f"{'discarded' if action == 'dead discard' else 'purged'} by {by}", by=by)
    return None
