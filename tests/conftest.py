"""Real parts for all tests: a SQLite file, the outbox tables in it, and one node of each product for the session."""

from __future__ import annotations

import importlib
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import hypothesis
import pytest
from loguru import logger
from sqlalchemy import Engine, create_engine

from outbox import logs, schema, sqlite
from outbox.destinations.cluster.destination import ClusterDestination
from outbox.destinations.embedded.destination import EmbeddedDestination
from tests.support import postgres as servers
from tests.support.memory_cluster import MemoryCluster
from tests.support.node import ELASTICSEARCH_9, OPENSEARCH, TESTED, Node, Server, destination_to, unavailable_reason
from tests.support.outbox import Outbox
from tests.support.places import ClusterPlace, EmbeddedPlace, Place
from tests.support.proxy import FaultProxy
from tests.support.relays import Relays

DATABASE = os.environ.get("TEST_DATABASE", "sqlite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-elasticsearch",
        action="store_true",
        default=os.environ.get("CI") == "true",
        help="fail instead of skipping when no node or no PostgreSQL can be had (default with CI=true)",
    )


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what a test needs by the fixtures it takes, so that no test can forget to say so.

    Files that take long begin first where several run at a time: else all wait for one of them in the end.
    """
    for item in items:
        taken = set(getattr(item, "fixturenames", ()))
        if taken & {"node", "node_9", "node_of_opensearch"}:
            item.add_marker("elasticsearch")
        if "chromium" in taken:
            item.add_marker("browser")
        if DATABASE != "sqlite" and item.get_closest_marker("sqlite"):
            item.add_marker(pytest.mark.skip(reason=f"about SQLite, and TEST_DATABASE is {DATABASE}"))
    if hasattr(config, "workerinput"):  # of pytest-xdist
        long = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in long)


logger.remove()  # loguru prints to the terminal unless told otherwise

# How long a draw or a run takes says how busy the machine is, and nothing of the code.
hypothesis.settings.register_profile(
    "any machine",
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
# What .ci/run draws is the same each time, so that it judges the commit; .ci/nightly and developers draw anew.
hypothesis.settings.register_profile("same each time", hypothesis.settings.get_profile("any machine"), derandomize=True)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith("OUTBOX_") or name == "ELASTICSEARCH_URL":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)  # no .env of the checkout either
    for name, given in (("json", False), ("operations", True)):  # a command of an earlier test may have chosen others
        monkeypatch.setattr(logs._Output, name, given)
    yield
    logger.remove()  # a command may have set up logs on a stream that is closed by now


@pytest.fixture(scope="session")
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """One real Elasticsearch (or TEST_PRODUCT) for all tests; each test uses index names of its own or wipes."""
    yield from _node(request, TESTED)


@pytest.fixture(scope="session")
def node_9(request: pytest.FixtureRequest) -> Iterator[Node]:
    """The same of the next major version, for the tests of the contract."""
    yield from _node(request, ELASTICSEARCH_9)


@pytest.fixture(scope="session")
def node_of_opensearch(request: pytest.FixtureRequest) -> Iterator[Node]:
    """The same of OpenSearch."""
    if TESTED is OPENSEARCH:
        yield request.getfixturevalue("node")
    else:
        yield from _node(request, OPENSEARCH)


def _node(request: pytest.FixtureRequest, server: Server) -> Iterator[Node]:
    if reason := unavailable_reason(server):
        why = f"no {server.product} {server.version}: {reason}"
        if request.config.getoption("--require-elasticsearch"):
            pytest.fail(why)
        pytest.skip(why)
    running = Node.start(server=server)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[servers.Postgres]:
    """One real PostgreSQL for all tests; each test has a database of its own."""
    if reason := servers.unavailable_reason():
        if request.config.getoption("--require-elasticsearch"):
            pytest.fail(reason)
        pytest.skip(reason)
    running = servers.Postgres()
    yield running
    running.close()


@pytest.fixture
def clean_node(node: Node) -> Node:
    node.wipe()
    return node


@pytest.fixture
def proxy(clean_node: Node) -> Iterator[FaultProxy]:
    """Stands between the relay and the node, and provokes faults on the wire."""
    running = FaultProxy(clean_node.url)
    yield running
    running.close()


@pytest.fixture
def destination(proxy: FaultProxy) -> Iterator[ClusterDestination]:
    made = destination_to(proxy.url, request_timeout=30)
    yield made
    made.close()


@pytest.fixture
def cluster() -> Iterator[MemoryCluster]:
    """What takes requests like Elasticsearch, for tests of what goes over the wire."""
    running = MemoryCluster()
    yield running
    running.close()


@pytest.fixture(params=["embedded", pytest.param(TESTED.product, marks=pytest.mark.elasticsearch)])
def place(request: pytest.FixtureRequest) -> Place:
    """Each kind of destination in turn, for tests that hold for all of them."""
    if request.param == "embedded":
        return cast(Place, request.getfixturevalue("embedded_place"))
    return ClusterPlace(*(request.getfixturevalue(name) for name in ("destination", "node", "proxy")))


@pytest.fixture
def embedded_place(tmp_path: Path) -> Iterator[EmbeddedPlace]:
    """The embedded destination alone, and a look behind it."""
    made = EmbeddedPlace(tmp_path / "search.db")
    yield made
    made.destination.close()


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[EmbeddedDestination]:
    """The embedded destination alone, for what does not depend on it."""
    made = EmbeddedDestination(tmp_path / "search.db")
    yield made
    made.close()


@pytest.fixture(scope="session")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the outbox tables, to be copied: its revisions take longer than most tests."""
    path = tmp_path_factory.mktemp("upgraded") / "app.db"
    made = create_engine(f"sqlite:///{path}")
    sqlite.prepare(made)
    schema.upgrade(made)
    made.dispose()
    return path


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Engine:
    """What tests work on that are not about one database: SQLite, or TEST_DATABASE."""
    made: Engine = request.getfixturevalue(f"{DATABASE}_engine")
    return made


@pytest.fixture
def postgresql_engine(postgres: servers.Postgres) -> Iterator[Engine]:
    """An engine on a database with the outbox tables."""
    with postgres.database() as url:
        made = create_engine(url)
        yield made
        made.dispose()


@pytest.fixture
def sqlite_engine(upgraded: Path, tmp_path: Path) -> Iterator[Engine]:
    """A prepared engine on a file with the outbox tables."""
    path = shutil.copy(upgraded, tmp_path / "app.db")
    made = create_engine(f"sqlite:///{path}")
    sqlite.prepare(made)
    yield made
    made.dispose()


@pytest.fixture
def outbox(engine: Engine) -> Iterator[Outbox]:
    made = Outbox(engine)
    yield made
    made.close()


@pytest.fixture
def chance() -> random.Random:
    """What kill loops draw from: TEST_KILL_SEED repeats it."""
    seed = os.environ.get("TEST_KILL_SEED") or str(random.randrange(10**9))
    print(f"TEST_KILL_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def said() -> list[str]:
    """What is logged from now on, each line with its level."""
    lines: list[str] = []
    logger.add(lambda line: lines.append(str(line).strip()), format="{level} {message}")
    return lines


@pytest.fixture
def relays(outbox: Outbox, proxy: FaultProxy, tmp_path: Path) -> Iterator[Relays]:
    """Relay processes on that database; those that a test leaves are ended."""
    running = Relays(outbox, proxy.url, tmp_path)
    yield running
    running.end()


@pytest.fixture
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Writes the files of a page to the working directory, where they can be imported."""
    from tests.support.pages import EVERYTHING, write_files  # not above: this loads the command line and the API

    packages = set()

    def write(page: str) -> Path:
        packages.update(name.partition("/")[0] for name in write_files(EVERYTHING[page], tmp_path))
        return tmp_path

    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        if (engine := getattr(sys.modules[name], "engine", None)) is not None and isinstance(engine, Engine):
            engine.dispose()
        del sys.modules[name]
