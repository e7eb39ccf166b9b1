"""A transaction is left open while rows are written and delivered: no dead version of a row can be removed.

`TEST_OPEN_TRANSACTION_S` says for how long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from statistics import quantiles

import pytest
from loguru import logger
from sqlalchemy import Engine, create_engine, text

from outbox import check
from outbox.relay.relay import Relay
from outbox.store import claims
from outbox.store.claims import Claim
from outbox.store.due import ClaimRequest
from outbox.store.postgresql import findings
from outbox.store.store import Store, dialect_of
from tests.support.outbox import Outbox, settings
from tests.support.places import EmbeddedPlace

pytestmark = pytest.mark.slow

OPEN_S = float(os.environ.get("TEST_OPEN_TRANSACTION_S", "20"))
A_SECOND = 1_000  # rows
AT_ONCE = 250  # rows, for which one claim is enough
DOCUMENTS = 5_000
SOME = 60  # claims, of which the latency is taken


@pytest.fixture
def took(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How many ms each claim took that found rows."""
    noted: list[float] = []
    claim = claims.claim

    def timed(store: Store, request: ClaimRequest) -> Claim | None:
        began = time.perf_counter()
        found = claim(store, request)
        if found:
            noted.append((time.perf_counter() - began) * 1_000)
        return found

    monkeypatch.setattr(claims, "claim", timed)
    return noted


@pytest.fixture
def relay(engine: Engine, place: EmbeddedPlace) -> Iterator[Relay]:
    """With the sessions that those of the command have."""
    prepared = create_engine(engine.url)
    dialect_of(prepared).prepare(prepared)
    with closing(Store(prepared)) as store:
        yield Relay(store, place.destination, settings(log_operations=False), relay_id=1)
    prepared.dispose()


def p50_and_p99(took: list[float]) -> tuple[float, float]:
    cut = quantiles(took[-SOME:], n=100)
    return round(cut[49], 1), round(cut[98], 1)


def test_transaction_that_is_left_open_is_named_and_claims_stay_within_bounds(
    outbox: Outbox, relay: Relay, place: EmbeddedPlace, took: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger.remove()
    written: dict[str, int] = {}
    rows = 0

    def write_and_deliver() -> None:
        nonlocal rows
        documents = {str(n % DOCUMENTS): n for n in range(rows, rows + AT_ONCE)}
        outbox.index_many("contacts", [(each, {"n": n, "text": "x" * 300}) for each, n in documents.items()])
        written.update(documents)
        rows += AT_ONCE
        while relay.run_once():
            pass

    while len(took) < SOME:
        write_and_deliver()
    before, at_first = p50_and_p99(took), rows
    with outbox.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        process = connection.scalar(text("SELECT pg_backend_pid()"))
        began = time.monotonic()
        while (passed := time.monotonic() - began) < OPEN_S:
            time.sleep(max(0.0, (rows - at_first) / A_SECOND - passed))
            write_and_deliver()
        after, thousands = p50_and_p99(took), (rows - at_first) / 1_000
        print(f"{thousands:,.0f} thousand rows in {OPEN_S:,.0f} s; ms of a claim, p50 and p99:", before, "→", after)
        monkeypatch.setattr(findings, "LONG_S", min(findings.LONG_S, int(OPEN_S / 2)))
        (named,) = (each for each in check.database(outbox.engine) if each.name == "transactions")
        assert (named.level, f"(process {process})" in named.found) == ("warn", True)
    for at_start, in_the_end in zip(before, after, strict=True):
        assert in_the_end < at_start * (3 + 0.06 * thousands)
    assert {each: found["n"] for each, found in place.documents("contacts").items()} == written
    assert outbox.counts() == {"pending": 0, "claimed": 0, "done": rows, "dead": 0}
