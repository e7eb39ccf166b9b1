"""The README's files for an application, written to disk and run as they stand."""

from __future__ import annotations

import importlib
import io
import json
import re
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text

from outbox import OutboxRepository, schema, sqlite
from outbox.store.models import metadata
from outbox.testing import OutboxTester
from tests.support import LIMIT_S
from tests.support.node import Node
from tests.support.outbox import Outbox

README = (Path(__file__).parents[1] / "README.md").read_text()
FILES = dict(re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files, in the working directory, and its database with all tables."""
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "myapp" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    models = importlib.import_module("myapp.models")
    models.Base.metadata.create_all(models.engine)
    schema.upgrade(models.engine)
    yield tmp_path
    models.engine.dispose()
    for name in [name for name in sys.modules if name.partition(".")[0] == "myapp"]:
        del sys.modules[name]


@pytest.fixture
def models(application: Path) -> ModuleType:
    assert application
    return importlib.import_module("myapp.models")


@pytest.fixture
def tester(models: ModuleType) -> Iterator[OutboxTester]:
    with OutboxTester(models.engine, models.registry) as made:
        yield made


def client_of(app: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the test client's own dependencies
        from fastapi.testclient import TestClient

        return TestClient(app)


@contextmanager
def relay_beside(models: ModuleType, path: Path) -> Iterator[None]:
    """A relay in a thread, for endpoints that wait for it."""
    from outbox.destinations.embedded.destination import EmbeddedDestination
    from outbox.relay.relay import Relay
    from outbox.store.store import Store
    from tests.support.outbox import settings

    engine = create_engine(models.engine.url)
    sqlite.prepare(engine)
    relays: list[Relay] = []
    ready = threading.Event()

    def run() -> None:  # the store belongs to the thread that uses it
        store, destination = Store(engine), EmbeddedDestination(path)
        relays.append(Relay(store, destination, settings(), registry=models.registry))
        ready.set()
        relays[0].run()
        store.close()
        destination.close()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait(LIMIT_S)
    yield
    relays[0].stop()
    thread.join(LIMIT_S)
    engine.dispose()


def test_all_files_of_the_guide_are_found() -> None:
    assert set(FILES) == {
        "myapp/models.py",
        "myapp/api.py",
        "myapp/async_api.py",
        "myapp/web.py",
        "migrations/env.py",
        "tests/conftest.py",
        "tests/test_contacts.py",
        "fill.py",
        "compare.py",
    }


def test_fastapi_creates_a_contact_that_can_be_found(tester: OutboxTester) -> None:
    client = client_of(importlib.import_module("myapp.api").app)
    created = client.post("/contacts", params={"name": "Ada Lovelace", "tenant": "acme"})
    assert (created.status_code, created.json()) == (201, {"id": 1})
    tester.assert_enqueued("contacts", "1", action="refresh", tenant_id="acme", times=1)
    tester.drain()
    assert tester.document("contacts", "1") == {"name": "Ada Lovelace", "tenantId": "acme"}


def test_fastapi_answers_when_the_change_can_be_found(
    models: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from outbox.destinations.embedded.destination import EmbeddedDestination

    monkeypatch.setenv("OUTBOX_DESTINATION", "embedded")
    monkeypatch.setenv("OUTBOX_EMBEDDED_PATH", str(tmp_path / "search.db"))
    wait = OutboxRepository.wait_until_synced
    # The snippet waits for 5 s, as long as a person does; a busy machine may stand still for that.
    monkeypatch.setattr(
        OutboxRepository,
        "wait_until_synced",
        lambda repo, timeout, **given: wait(repo, max(timeout, LIMIT_S), **given),
    )
    client = client_of(importlib.import_module("myapp.api").app)
    with relay_beside(models, tmp_path / "search.db"):
        client.post("/contacts", params={"name": "Ada", "tenant": "acme"})
        assert client.patch("/contacts/1", params={"name": "Grace"}).json() == {"name": "Grace"}
        destination = EmbeddedDestination(tmp_path / "search.db")
        (hit,) = destination.search("contacts", "grace")
        destination.close()
    assert hit.source["name"] == "Grace"


def test_fastapi_with_async_sessions_captures_and_takes_explicit_calls(tester: OutboxTester) -> None:
    client = client_of(importlib.import_module("myapp.async_api").app)
    assert client.post("/contacts", params={"name": "Ada", "tenant": "acme"}).json() == {"id": 1}
    tester.drain()
    assert tester.document("contacts", "1") == {"name": "Ada", "tenantId": "acme"}
    assert tester.document("notes", "welcome-1") == {"text": "Ada is new here", "contact": 1}


def test_flask_creates_and_removes_a_contact(tester: OutboxTester) -> None:
    client = importlib.import_module("myapp.web").app.test_client()
    created = client.post("/contacts", json={"name": "Ada", "tenant_id": "acme"})
    assert (created.status_code, created.get_json()) == (201, {"id": 1})
    tester.drain()
    assert tester.document("contacts", "1") == {"name": "Ada", "tenantId": "acme"}
    assert client.delete("/contacts/1").status_code == 204
    tester.drain()
    assert tester.document("contacts", "1") is None


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
@pytest.mark.parametrize("whose", ["outbox-relay migrate", "the application"])
def test_alembic_of_the_application_leaves_the_tables_alone_or_makes_them(
    application: Path, models: ModuleType, whose: str
) -> None:
    from alembic import command
    from alembic.config import Config

    scripts = application / "migrations"
    shutil.rmtree(scripts)
    config = Config(str(application / "alembic.ini"), stdout=io.StringIO())
    command.init(config, str(scripts))
    (scripts / "env.py").write_text(FILES["migrations/env.py"])
    with models.engine.begin() as connection:
        models.Base.metadata.drop_all(connection)
        if whose == "the application":
            metadata.drop_all(connection)
            connection.execute(text(f"DROP TABLE {schema.VERSION_TABLE}"))
    command.revision(config, autogenerate=True)
    (revision,) = (scripts / "versions").glob("*.py")
    content = revision.read_text()
    assert "create_table('contacts'" in content
    assert "outbox" not in content
    if whose == "the application":
        (call,) = re.findall(r"`(outbox\.models\.metadata\.create_all\(.*?\))`", README)
        content = content.replace("def upgrade() -> None:", f"def upgrade() -> None:\n    import outbox.models; {call}")
        revision.write_text(content)
    command.upgrade(config, "head")
    with models.engine.connect() as connection:
        made = set(connection.scalars(text("SELECT name FROM sqlite_master WHERE tbl_name = 'outbox_events'")))
    assert {index.name for index in metadata.tables["outbox_events"].indexes} <= made
    with OutboxTester(models.engine, models.registry) as tester:
        with models.Session.begin() as session:
            session.add(models.Contact(name="Ada", tenant_id="acme"))
        tester.drain()
        assert tester.document("contacts", "1") == {"name": "Ada", "tenantId": "acme"}


def test_tests_of_the_application_run(application: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/test_contacts.py"],
        cwd=application,
        env={"PYTHONPATH": str(application), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_rows_that_another_language_inserts_are_delivered(engine: Engine) -> None:
    statements = README.split("### In another language")[1].split("```sql\n")[1].split("```")[0]
    with engine.begin() as connection:
        for statement in statements.split(";\n"):
            if statement.strip():
                connection.execute(text(statement.replace('": ', '"\\: ')))
    with OutboxTester(engine) as tester:
        tester.drain()
        assert tester.document("contacts", "contact-123") == {"name": "Ada"}


@pytest.mark.elasticsearch
def test_moving_over_from_a_worker_that_writes_to_an_index_of_its_own(
    application: Path, models: ModuleType, clean_node: Node
) -> None:
    """Fill, compare and cut over, with the README's own files and its own call."""
    from outbox.destinations.elasticsearch.destination import ElasticsearchDestination

    with models.engine.begin() as connection:  # what was there before the outbox
        for number in range(1, 2_501):
            connection.execute(text(f"INSERT INTO contacts (tenant_id, name) VALUES ('acme', 'Ada {number}')"))
    clean_node.request("PUT", "/contacts-v1", {"aliases": {"contacts": {}}})
    by_worker = [
        {"index": {"_id": n}} if odd else {"name": f"Ada {n}", "tenantId": "acme"}
        for n in range(1, 2_501)
        for odd in (1, 0)
    ]
    clean_node.request("POST", "/contacts/_bulk", b"".join(json.dumps(each).encode() + b"\n" for each in by_worker))

    def run(file: str, *arguments: str) -> str:
        command = [sys.executable, file, *arguments]
        return subprocess.run(
            command, cwd=application, check=True, capture_output=True, text=True, timeout=LIMIT_S
        ).stdout

    run("fill.py")
    outbox, destination = Outbox(models.engine), ElasticsearchDestination([clean_node.url])
    outbox.drain(destination)
    assert run("compare.py", clean_node.url) == "2500 old, 2500 new, 0 different: []\n"
    outbox.index("shadow-contacts", "7", {"name": "Grace"})
    outbox.drain(destination)
    assert run("compare.py", clean_node.url) == "2500 old, 2500 new, 1 different: ['7']\n"

    cut_over = json.loads(README.split("/_aliases")[1].split("-d '")[1].split("'\n```")[0])
    assert clean_node.request("POST", "/_aliases", cut_over)[0] == 200
    outbox.index("shadow-contacts", "8", {"name": "Alan"})
    outbox.drain(destination)
    assert (clean_node.get("contacts", "7"), clean_node.get("contacts", "8")) == ({"name": "Grace"}, {"name": "Alan"})

    way_back = [
        {action: {**given, "index": other["index"]}}
        for (action, given), other in zip(
            ((action, given) for each in cut_over["actions"] for action, given in each.items()),
            (given for each in reversed(cut_over["actions"]) for given in each.values()),
            strict=True,
        )
    ]
    assert clean_node.request("POST", "/_aliases", {"actions": way_back})[0] == 200
    assert clean_node.get("contacts", "7") == {"name": "Ada 7", "tenantId": "acme"}
    outbox.index("shadow-contacts", "9", {"name": "Katherine"})
    outbox.drain(destination)
    assert clean_node.get("shadow-contacts", "9") == {"name": "Katherine"}
    outbox.close()
    destination.close()
