"""All that the OpenAPI document of the admin API allows, and much that it does not: never a server error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as bounded
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from outbox import EntityRegistry
from outbox.destinations.embedded.destination import EmbeddedDestination
from tests.support.outbox import Outbox
from tests.support.serving import TestClient, client_of

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 25


@pytest.fixture
def client(outbox: Outbox, tmp_path: Path) -> Iterator[TestClient]:
    destination = EmbeddedDestination(tmp_path / "search.db")
    with client_of(outbox.engine, destination, EntityRegistry()) as made:
        yield made
    destination.close()


def fill(outbox: Outbox) -> None:
    """Rows in every state, with low ids that a guess may hit; a reindex that has ended, one that nobody works on."""
    outbox.raw("DELETE FROM outbox_events")
    outbox.raw("DELETE FROM outbox_reindex_jobs")
    for sequence in ("outbox_events", "outbox_reindex_jobs"):
        outbox.raw("DELETE FROM sqlite_sequence WHERE name = :name", name=sequence)
    outbox.index_many("contacts", [(f"c{at}", {"name": at}) for at in range(20)])
    outbox.raw("UPDATE outbox_events SET state = 'done', outcome = 'applied', finished_at = 1 WHERE id % 4 = 0")
    outbox.raw("UPDATE outbox_events SET state = 'claimed', claim_token = 'x', lease_expires_at = 1 WHERE id % 4 = 1")
    outbox.raw("UPDATE outbox_events SET state = 'dead', error_type = 'poison', error = 'x' WHERE id % 4 = 2")
    outbox.raw("UPDATE outbox_events SET tenant_id = 't1' WHERE id % 3 = 0")
    outbox.put_raw("contacts", "c0", "no JSON")
    for state in ("done", "running"):
        outbox.raw(
            "INSERT INTO outbox_reindex_jobs (index_name, old_index, phase, state)"
            " VALUES ('contacts', 'contacts-000001', 'scan', :state)",
            state=state,
        )


OPERATIONS = [
    "GET /status", "GET /events", "GET /events/{id}", "POST /dead/retry", "POST /dead/discard", "POST /pause",
    "POST /resume", "POST /reindex", "GET /reindex", "GET /reindex/{id}", "POST /reindex/{id}/cancel", "POST /verify",
    "POST /purge", "GET /audit", "GET /document", "POST /document/deliver", "GET /indexes", "GET /index",
    "GET /needs", "GET /relays", "GET /kept", "POST /reindex/rollback", "GET /verify", "GET /verify/{id}",
    "POST /verify/{id}/cancel",
]  # fmt: skip


TAKE_NOTHING = ("GET /status", "GET /needs", "GET /relays", "GET /kept")


def test_every_operation_is_asked(client: TestClient) -> None:
    paths = client.get("/api/openapi.json").json()["paths"]
    described = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert described == {each.replace(" ", " /api/v1/admin") for each in OPERATIONS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operation", "mode"),
    [
        (operation, mode)
        for operation in OPERATIONS
        for mode in schemathesis.GenerationMode
        if mode.is_positive or operation not in TAKE_NOTHING
    ],
    ids=str,
)
def test_answer_that_the_document_does_not_describe(
    client: TestClient, outbox: Outbox, operation: str, mode: Any
) -> None:
    method, _, path = operation.partition(" ")
    schema = schemathesis.openapi.from_dict(client.get("/api/openapi.json").json())
    asked = schema[f"/api/v1/admin{path}"][method]
    fill(outbox)

    @bounded(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=asked.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        parts = {name: part for name, part in case.as_transport_kwargs(base_url=str(client.base_url)).items() if part}
        if isinstance(parts.get("data"), bytes | str):
            parts["content"] = parts.pop("data")
        answer = client.request(**{**parts, "headers": dict(parts["headers"]), "cookies": None})
        case.validate_response(answer, checks=CHECKS)

    ask()
