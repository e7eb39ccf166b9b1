"""A dashboard to look at, and rows to see there."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outbox.store.models import now_ms
from tests.reindex.world import World
from tests.support.browser import Visit
from tests.support.outbox import Outbox
from tests.support.relays import Relays, until

registry = World.registered(tenancy="prefixed")
ENTITIES = f"{__name__}:registry"
"""By which the processes find it."""

Look = Callable[..., Visit]


def dashboard(relays: Relays, *arguments: str, **given: str) -> str:
    """Start a process with the admin server in it. Returns its address."""
    position = len(relays.started)
    relays.start(*arguments, OUTBOX_ADMIN_PORT="0", **given)
    found = until(lambda: re.search(r"dashboard at (http://\S+?)/\n", relays.log(position)), "it says where it is")
    return str(found[1])


@dataclass(frozen=True, slots=True)
class Site:
    """A dashboard alone: nothing is delivered while a test looks."""

    url: str
    outbox: Outbox


def embedded_relays(outbox: Outbox, directory: Path) -> Relays:
    """Processes that deliver to a file."""
    relays = Relays(outbox, "", directory)
    relays.give(
        OUTBOX_DESTINATION="embedded",
        OUTBOX_EMBEDDED_PATH=str(directory / "search.db"),
        OUTBOX_ENTITIES=ENTITIES,
    )
    return relays


def dead_row(outbox: Outbox, document_id: str = "c1", index: str = "contacts", **values: Any) -> int:
    """A row that was given up."""
    row = outbox.put_raw(index, document_id, values.pop("document", "{}"))
    given = {"state": "dead", "error_type": "some_exception", "error": "it was refused", "finished_at": now_ms()}
    for column, value in (given | values).items():
        outbox.raw(f"UPDATE outbox_events SET {column} = :value WHERE id = :row", value=value, row=row)
    return row


def insert(outbox: Outbox, table: str, **values: Any) -> None:
    """A row as another program writes it."""
    outbox.raw(
        f"INSERT OR REPLACE INTO {table} ({', '.join(values)}) VALUES ({', '.join(f':{name}' for name in values)})",
        **values,
    )
