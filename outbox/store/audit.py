"""What operators do, by whom and when: noted before it begins, so that nothing is done without a trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from outbox.errors import OutboxError
from outbox.store.models import now_ms
from outbox.store.store import Store, escaped, printable


@dataclass(slots=True)
class Note:
    """What is said of an action once it has ended. `affected`: rows or documents; None: it is not about any.

    `ids`: rows that it has changed so far.
    """

    affected: int | None = None
    ids: list[int] = field(default_factory=list)

    def add(self, ids: Iterable[int]) -> None:
        """Note rows as soon as their change is committed: what comes after may be interrupted."""
        self.ids += ids
        self.affected = len(self.ids)


@contextmanager
def noted(store: Store, by: str, action: str, about: str = "") -> Iterator[Note]:
    """Note what is done within. A failure is noted with its error; one without an end was killed, or goes on.

    `about`: what it was told, see `described`. Raises `DatabaseUnavailable`.
    """
    with store.write(durable=True):
        id_ = store.run(
            "INSERT INTO outbox_audit (began_at, acted_by, action, about) VALUES (:now, :by, :action, :about)"
            " RETURNING id",
            now=now_ms(),
            by=printable(by),
            action=action,
            about=escaped(about),  # whole: a number that was cut would name another row
        ).scalar_one()
    note, error = Note(), None
    try:
        yield note
    except BaseException as raised:  # an interrupt, too, is no success
        error = str(raised) if isinstance(raised, OutboxError) else type(raised).__name__
        raise
    finally:
        with store.write(durable=False):
            store.run(
                "UPDATE outbox_audit SET ended_at = :now, affected = :affected, error = :error WHERE id = :id",
                now=now_ms(),
                affected=note.affected,
                error=printable(error),
                id=id_,
            )


def described(selection: Mapping[str, object]) -> str:
    """A selection in one line: what it names, or `all`."""
    chosen = [
        f"{name}={','.join(map(str, value)) if isinstance(value, tuple | list) else value}"
        for name, value in sorted(selection.items())
        if value
    ]
    return " ".join(chosen) or "all"


def newest(store: Store, limit: int, *, before: int | None = None, by: str | None = None) -> list[dict[str, Any]]:
    """What was done, the newest first: of ids below `before`, and by whoever has that name."""
    found = store.run(
        "SELECT * FROM outbox_audit WHERE (:before IS NULL OR id < :before) AND (:by IS NULL OR acted_by = :by)"
        " ORDER BY id DESC LIMIT :limit",
        before=before,
        by=by,
        limit=limit,
    )
    return found.mappings()


def prune(store: Store, before: int) -> None:
    """Remove what was done before that instant."""
    with store.write(durable=False):
        store.run("DELETE FROM outbox_audit WHERE began_at < :before", before=before)
