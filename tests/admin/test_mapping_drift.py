"""Indexes that are not as registered, in the API and on the dashboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outbox import EntityRegistry
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.mappings import DriftWatch
from tests.admin.world import API, Base, Contact
from tests.support.outbox import Outbox
from tests.support.relays import until
from tests.support.serving import client_of


def drifted(outbox: Outbox, directory: Path) -> tuple[EmbeddedDestination, EntityRegistry]:
    """An index that was made before its mappings were changed."""
    Base.metadata.create_all(outbox.engine)
    destination, registry = EmbeddedDestination(directory / "search.db"), EntityRegistry()
    target = destination.ensure_index("contacts", {"properties": {"name": {"type": "text"}}})
    outbox.store().register_index("contacts", target)
    mappings = {"properties": {"name": {"type": "keyword"}, "<b>": {"type": "long"}}}
    registry.add(Contact, index="contacts", fields=["name"], mappings=mappings)
    return destination, registry


def test_index_that_is_not_as_registered_is_shown_with_its_remedy(outbox: Outbox, tmp_path: Path) -> None:
    destination, registry = drifted(outbox, tmp_path)
    with client_of(outbox.engine, destination, registry) as client:

        def seen() -> Any:
            return client.get(f"{API}/status").json()["mappings"]

        (found,) = until(seen, "the poller has compared them")
        assert found == {
            "index": "contacts",
            "found": "contacts-000001 is not as registered: name is text, registered as keyword, and 1 more",
            "remedy": "run 'outbox-relay mappings apply', then 'outbox-relay reindex --entity contacts'",
        }
        page = client.get("/").text
        assert "Indexes that are not as registered" in page
        assert "name is text, registered as keyword" in page
    destination.close()


def test_destination_is_asked_now_and_then(outbox: Outbox, tmp_path: Path) -> None:
    destination, registry = drifted(outbox, tmp_path)
    watch = DriftWatch(destination, registry)
    (found,) = watch.look(outbox.store())
    destination.drop_index("contacts-000001")
    assert watch.look(outbox.store()) == watch.found == [found]  # it was asked a moment ago
    assert DriftWatch(destination, EntityRegistry()).look(outbox.store()) == []
    destination.close()


def test_what_was_found_stays_while_the_destination_is_away(
    outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination, registry = drifted(outbox, tmp_path)
    watch = DriftWatch(destination, registry)
    watch.look(outbox.store())
    destination.close()
    (tmp_path / "search.db").write_text("no database\n" * 100)
    away = DriftWatch(EmbeddedDestination(tmp_path / "search.db"), registry)
    away.found = watch.found
    away.look(outbox.store())
    assert away.found == watch.found != []
    monkeypatch.setattr(EmbeddedDestination, "inspect_index", None)
    assert away.look(outbox.store()) == watch.found  # it did not answer a moment ago: it is not asked each time
