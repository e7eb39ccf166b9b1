"""No request is larger than OUTBOX_BATCH_BYTES, its largest document and 200 bytes a row, whatever its rows are."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from outbox import EntityRegistry
from outbox.destinations.base import Operation, Outcome
from outbox.destinations.elasticsearch.destination import ElasticsearchDestination
from outbox.reindex.writer import Writer
from tests.support.memory_cluster import MemoryCluster
from tests.support.outbox import Outbox

LIMIT, LARGEST, ROWS = 100_000, 20_000, 40
TEXT = "x" * (LARGEST - 100)


class Base(DeclarativeBase):
    pass


class Article(Base):
    __tablename__ = "articles"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]


class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@pytest.fixture
def limited(cluster: MemoryCluster) -> Iterator[ElasticsearchDestination]:
    made = ElasticsearchDestination([cluster.url], request_timeout=30, request_bytes=LIMIT)
    yield made
    made.close()


@pytest.fixture
def registry(engine: Engine) -> EntityRegistry:
    Base.metadata.create_all(engine)
    made = EntityRegistry()
    made.add(Article, index="articles", fields=["body"])
    made.add(Tag, index="tags", to_document=lambda tag: {"name": tag.name, "text": TEXT})
    return made


def drained(outbox: Outbox, destination: ElasticsearchDestination, registry: EntityRegistry | None = None) -> None:
    relay = outbox.relay(destination, registry=registry, batch_bytes=LIMIT)
    while relay.run_once():
        pass
    assert outbox.counts()["pending"] == outbox.counts()["dead"] == 0


def held_to_the_limit(cluster: MemoryCluster, largest: int = LARGEST) -> int:
    """How many requests there were, none of them too large."""
    for request in cluster.bulks:
        rows = request.body.count(b'"version_type"')
        assert len(request.body) <= LIMIT + largest + 200 * rows
    return len(cluster.bulks)


def test_documents_written_by_hand(outbox: Outbox, cluster: MemoryCluster, limited: ElasticsearchDestination) -> None:
    outbox.index_many("plain", [(f"c{n}", {"body": TEXT}) for n in range(ROWS)])
    drained(outbox, limited)
    assert held_to_the_limit(cluster) <= ROWS * LARGEST // LIMIT + 1
    assert len(cluster.documents["plain-000001"]) == ROWS


@pytest.mark.parametrize("model", [Article, Tag])
def test_entities_are_measured_when_they_are_made(
    outbox: Outbox,
    cluster: MemoryCluster,
    limited: ElasticsearchDestination,
    registry: EntityRegistry,
    model: type[Article | Tag],
) -> None:
    sessions = registry.capture(sessionmaker(outbox.engine))
    with sessions.begin() as session:
        session.add_all(Article(body=TEXT) if model is Article else Tag(name="x") for _ in range(ROWS))
    drained(outbox, limited, registry)
    assert held_to_the_limit(cluster) <= 2 * ROWS * LARGEST // LIMIT + 1
    assert len(cluster.documents[f"{model.__tablename__}-000001"]) == ROWS
    assert {row["deliveries"] for row in outbox.store().events()} == {1}  # what was given back was not delivered


def test_entities_beside_documents_written_by_hand(
    outbox: Outbox, cluster: MemoryCluster, limited: ElasticsearchDestination, registry: EntityRegistry
) -> None:
    sessions = registry.capture(sessionmaker(outbox.engine))
    with sessions.begin() as session:
        for n in range(ROWS):
            session.add(Article(body=TEXT))
            outbox.repository(session).index("plain", f"c{n}", {"body": TEXT})
    drained(outbox, limited, registry)
    held_to_the_limit(cluster)
    assert [len(each) for each in cluster.documents.values()] == [ROWS, ROWS]


def test_partial_updates_of_large_documents(
    outbox: Outbox, cluster: MemoryCluster, limited: ElasticsearchDestination
) -> None:
    outbox.index_many("plain", [(f"c{n}", {"body": TEXT}) for n in range(ROWS)])
    drained(outbox, limited)
    cluster.clear()
    for n in range(ROWS):
        outbox.update("plain", f"c{n}", {"seen": n})
    drained(outbox, limited)
    assert held_to_the_limit(cluster) >= ROWS * LARGEST // (LIMIT + LARGEST)
    assert cluster.documents["plain-000001"]["c7"] == {"body": TEXT, "seen": 7}


@pytest.mark.parametrize("write", ["index", "update"])
def test_dual_writes_of_a_reindex(
    outbox: Outbox, cluster: MemoryCluster, limited: ElasticsearchDestination, write: str
) -> None:
    outbox.index_many("plain", [(f"c{n}", {"body": TEXT}) for n in range(ROWS)])
    drained(outbox, limited)
    outbox.raw("INSERT INTO outbox_indexes (index_name, physical_index, role) VALUES ('plain', 'plain-000002', 'new')")
    limited.create_index("plain-000002", {}, {})
    cluster.clear()
    for n in range(ROWS):
        if write == "index":
            outbox.index("plain", f"c{n}", {"body": TEXT, "seen": n})
        else:
            outbox.update("plain", f"c{n}", {"seen": n})
    drained(outbox, limited)
    held_to_the_limit(cluster)
    assert cluster.documents["plain-000002"] == cluster.documents["plain-000001"]


def test_deletes_and_long_ids(outbox: Outbox, cluster: MemoryCluster, limited: ElasticsearchDestination) -> None:
    ids = [f"{n:03}" + "\u0001" * 500 for n in range(500)]  # each of them six bytes in JSON
    outbox.index_many("plain", [(each, {}) for each in ids])
    drained(outbox, limited)
    for each in ids:
        outbox.delete("plain", each)
    drained(outbox, limited)
    held_to_the_limit(cluster)
    assert cluster.documents["plain-000001"] == {}


def test_scan_of_a_reindex(cluster: MemoryCluster, limited: ElasticsearchDestination) -> None:
    cluster.documents["plain-000001"].clear()
    limited.ensure_index("plain")
    document = b'{"body":"%s"}' % TEXT.encode()
    operations = [Operation("plain", "plain-000001", f"c{n}", 1, document, or_equal=True) for n in range(ROWS)]
    with Writer[None](limited, 2, LIMIT, check=lambda: None, report=lambda _: None) as writer:
        writer.send(operations, None)
        assert [page.refused for page in writer.drain()] == [[]]
    assert held_to_the_limit(cluster) <= ROWS * LARGEST // LIMIT + 1
    assert len(cluster.documents["plain-000001"]) == ROWS


class Together(ElasticsearchDestination):
    """Answers none of the first two requests before it has both."""

    both = threading.Barrier(2)
    left = 2

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        if self.left:
            self.left -= 1
            self.both.wait(20)
        return super().apply(operations)


def test_what_is_given_back_for_want_of_room_is_claimed_while_the_rest_is_on_its_way(
    engine: Engine,
    outbox: Outbox,
    cluster: MemoryCluster,
    limited: ElasticsearchDestination,
    registry: EntityRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("outbox.entities.loader.ROWS_AT_ONCE", 5)
    sessions = sessionmaker(engine)
    registry.capture(sessions)
    with sessions.begin() as session:
        session.add(Article(id=0, body=""))
    drained(outbox, limited, registry)  # the index is known
    with sessions.begin() as session:
        session.add_all(Article(id=1 + n, body=TEXT) for n in range(ROWS))
    destination = Together([cluster.url], request_timeout=30, request_bytes=LIMIT)
    outbox.relay(destination, registry=registry, batch_bytes=LIMIT, poll_interval=60.0, concurrency=2).run(drain=True)
    assert not destination.both.broken
    assert len(cluster.documents["articles-000001"]) == ROWS + 1
    destination.close()
