"""Many claimers over few documents, on every database: judged by what each of them has written down itself."""

from __future__ import annotations

import os
import random
import threading
import time
from itertools import pairwise
from typing import NamedTuple

import pytest

from outbox.store import claims, outcomes, upkeep
from outbox.store.models import now_ms
from outbox.store.store import dialect_of
from tests.conformance.database import LEASE_MS, Database, applied, claim, in_threads
from tests.support import FACTOR, LIMIT_S

pytestmark = pytest.mark.slow

ROWS = int(os.environ.get("TEST_HAMMER_ROWS", 20_000)) * FACTOR
CLAIMERS = 8
WRITERS = 2
DOCUMENTS = 60
TENANTS = ("large", "small", None)


class Held(NamedTuple):
    """What a claimer has had of one document, from when to when, and whether it has delivered it."""

    document: str
    ids: tuple[int, ...]
    since: int
    until: int
    delivered: bool


def violations(held: list[Held]) -> list[tuple[Held, Held]]:
    """Two claims of one document at the same time, and rows that were delivered before an earlier one."""
    found = []
    by_document: dict[str, list[Held]] = {}
    for each in sorted(held, key=lambda one: one.since):
        by_document.setdefault(each.document, []).append(each)
    for of_one in by_document.values():
        for before, after in pairwise(of_one):
            if after.since < before.until or (before.delivered and after.ids[0] <= before.ids[-1]):
                found.append((before, after))
        delivered = [id_ for each in of_one if each.delivered for id_ in each.ids]
        assert delivered == sorted(set(delivered)), f"{of_one[0].document} out of order"
    return found


def test_hammer_of_claimers_keeps_each_document_in_one_claim_and_in_order(database: Database) -> None:
    held: list[Held] = []
    lock, writing = threading.Lock(), [WRITERS]
    seeds = random.Random(int(os.environ.get("TEST_CLAIMS_SEED") or time.time_ns()))

    def write(number: int) -> None:
        """Its documents are its own, so that their ids follow its commits."""
        chance, left = random.Random(number), ROWS // WRITERS
        mine = [f"c{n}" for n in range(DOCUMENTS) if n % WRITERS == number % WRITERS]
        while left:
            names = chance.choices(mine, k=min(left, chance.choice([1, 5, 400])))
            left -= len(names)
            with database.engine.begin() as connection:
                tenant = chance.choice(TENANTS)
                rows = [("refresh", "contacts", name, tenant, None, 0, now_ms()) for name in names]
                dialect_of(connection).insert(connection, rows)
        with lock:
            writing[0] -= 1

    def deliver(number: int) -> None:
        store, chance = database.store(), random.Random(number)
        while True:
            over = not writing[0]
            found = claim(store, relay=number % 100, now=now_ms(), rows=chance.choice([3, 50, 1_000]))
            if found is None:
                if over and not store.unfinished():
                    return
                upkeep.reap(store, now_ms(), LEASE_MS)
                time.sleep(0.001)
                continue
            since = time.monotonic_ns()
            ids: dict[str, list[int]] = {}
            for event in found.events:
                ids.setdefault(event.document_id, []).append(event.id)
            delivers = chance.random() < 0.9
            time.sleep(chance.random() * 0.003)  # what is delivered takes a while: others look meanwhile
            until = time.monotonic_ns()
            with lock:
                held.extend(Held(name, tuple(rows), since, until, delivers) for name, rows in ids.items())
            if delivers:
                assert outcomes.record(store, found, applied(found), now_ms()) == []
            else:
                every = [event.id for event in found.events]
                claims.release(store, found, every, now_ms(), undelivered=True)

    in_threads(
        *((write, seeds.randrange(10**6) * WRITERS + number) for number in range(WRITERS)),
        *((deliver, seeds.randrange(10**6) * 100 + number) for number in range(CLAIMERS)),
        limit_s=LIMIT_S * max(1, ROWS / 20_000),
    )
    assert violations(held) == []
    assert sum(len(each.ids) for each in held if each.delivered) == ROWS
    assert database.store().counts()["done"] == ROWS
