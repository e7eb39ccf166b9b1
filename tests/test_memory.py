"""A relay has no more memory than docs/reference/limits.md says, however large and many its rows are."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.support.memory_cluster import MemoryCluster
from tests.support.outbox import Outbox, settings
from tests.support.pages import PAGES
from tests.support.proxy import PRODUCT, FaultProxy, Reply, Request, bulk
from tests.support.relays import Relays, until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")]

BODY, ROWS, AT_ONCE = "x" * 300_000, 3_000, 250
MODELS = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from outbox import EntityRegistry

class Base(DeclarativeBase): pass

class Article(Base):
    __tablename__ = "articles"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]

class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]

registry = EntityRegistry()
registry.add(Article, index="articles", fields=["body"])
registry.add(Note, index="notes", to_document=lambda note: {"body": note.body})
"""


def take_all(_proxy: FaultProxy, request: Request) -> Reply:
    """Applied, and forgotten."""
    ids = re.findall(rb'^\{"index":\{"_index":"[^"]+","_id":"([^"]+)"', request.body, re.MULTILINE)
    request.body = b""
    items = [{"index": {"_id": each.decode(), "status": 200}} for each in ids]
    return Reply(200, dict(PRODUCT), json.dumps({"errors": False, "items": items}).encode())


def bound() -> int:
    """In bytes, with the settings' defaults."""
    found = re.search(
        r"at most some (\d+) MB \+ (\d) ×\s`OUTBOX_CONCURRENCY` × `OUTBOX_BATCH_BYTES`", PAGES["how-to/deploy.md"]
    )
    assert found
    default = settings()
    return int(found[1]) * 1_000_000 + int(found[2]) * default.concurrency * default.batch_bytes


def write(outbox: Outbox, table: str, rows: int) -> None:
    for start in range(0, rows, AT_ONCE):
        with outbox.engine.begin() as connection:
            for number in range(start, start + AT_ONCE):
                connection.exec_driver_sql(f"INSERT INTO {table} VALUES (?, ?)", (number, BODY))
                connection.exec_driver_sql(
                    "INSERT INTO outbox_events (action, index_name, document_id, entity) VALUES ('refresh', ?, ?, ?)",
                    (table, str(number), table),
                )


@pytest.mark.parametrize("table", ["articles", "notes"])
def test_three_thousand_entities_of_300_kb(
    engine: Engine, outbox: Outbox, cluster: MemoryCluster, tmp_path: Path, table: str
) -> None:
    cluster.on(bulk, take_all)
    (tmp_path / "models.py").write_text(MODELS)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, body TEXT NOT NULL)")
    write(outbox, table, ROWS)
    relays = Relays(outbox, cluster.url, tmp_path)
    try:
        relay = relays.start(OUTBOX_ENTITIES="models:registry", PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[1]}")
        until(lambda: outbox.counts()["done"] == ROWS, "all rows are delivered", 300)
        (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{relay.pid}/status").read_text())
    finally:
        relays.end()
    assert int(peak) * 1_024 < bound()
