"""One browser for all tests of this folder, and dashboards to look at."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser
from sqlalchemy import create_engine

from outbox import schema, sqlite
from outbox.store.models import metadata
from tests.dashboard.site import Look, Site, dashboard, embedded_relays
from tests.reindex.world import Base
from tests.support import browser as browsers
from tests.support.browser import Visit
from tests.support.outbox import Outbox
from tests.support.relays import Relays


@pytest.fixture(scope="package")
def chromium(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """One for all tests of this folder, and no longer: asyncio has no room beside it."""
    if reason := browsers.unavailable_reason():
        if request.config.getoption("--require-elasticsearch"):
            pytest.fail(reason)
        pytest.skip(reason)
    with browsers.browser() as started:
        yield started


@pytest.fixture
def look(chromium: Browser) -> Iterator[Look]:
    """Opens the dashboard for somebody; whatever they do, nothing that must never happen may have."""
    visits = []

    def visit(url: str, **options: Any) -> Visit:
        visits.append(Visit(chromium, url, **options))
        return visits[-1]

    yield visit
    for each in visits:
        each.close()
        assert each.faults == []


@pytest.fixture
def embedded(outbox: Outbox, tmp_path: Path) -> Iterator[Relays]:
    running = embedded_relays(outbox, tmp_path)
    yield running
    running.end()


@pytest.fixture(scope="package")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("dashboard")
    engine = create_engine(f"sqlite:///{directory / 'app.db'}")
    sqlite.prepare(engine)
    schema.upgrade(engine)
    Base.metadata.create_all(engine)
    outbox = Outbox(engine)
    relays = embedded_relays(outbox, directory)
    yield Site(dashboard(relays, command="serve"), outbox)
    relays.end()
    outbox.close()
    engine.dispose()


@pytest.fixture
def site(started: Site) -> Site:
    """With empty tables."""
    for table in metadata.sorted_tables:
        started.outbox.raw(f"DELETE FROM {table.name}")
    # Whoever acts has the overview made anew.
    connection = HTTPConnection(started.url.removeprefix("http://"))
    connection.request("POST", "/resume")
    assert connection.getresponse().status == HTTPStatus.SEE_OTHER
    connection.close()
    return started
