"""The files of the README and of the guides, written to disk and run as they stand, with the real libraries."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from outbox import OutboxRepository, Search, schema, sqlite, triggers
from outbox.destinations import destination_of
from outbox.settings import load
from outbox.testing import OutboxTester
from tests.support import LIMIT_S
from tests.support.guides import client_of, delivering, with_tables
from tests.support.node import Node
from tests.support.outbox import Outbox
from tests.support.pages import EVERYTHING, ROOT, blocks, first
from tests.support.postgres import Postgres

FILES = {
    "README.md": {"myapp/models.py"},
    "docs/tutorial.md": {".env", "models.py", "app.py"},  # run by test_tutorial.py
    "docs/how-to/fastapi.md": {f"fastapi_app/{name}.py" for name in ("models", "per_request", "api", "async_api")},
    "docs/how-to/flask-sqlalchemy.md": {
        *("flask_app/__init__.py", "migrated_app/__init__.py", "plain_flask/models.py", "plain_flask/web.py"),
    },
    "docs/how-to/sqlmodel.md": {"sqlmodel_app/models.py", "sqlmodel_app/api.py"},
    "docs/how-to/search.md": {  # the others run by test_search_guide.py
        *("search_app/find.py", "search_app/narrow.py", "search_app/count.py"),
        *("blog_app/__init__.py", "blog_app/pages.py"),
    },
    "docs/how-to/alembic.md": {
        *("alembic_app/models.py", "migrations/env.py"),  # and, run by test_guides_of_migrations.py:
        *("alembic_app/filters.py", "alembic_app/start.py", "alembic_app/async_start.py"),
    },
    "docs/how-to/backups.md": {"backup_app/dump.py"},  # run by test_backups.py
    "docs/how-to/triggers.md": {"triggers_app/models.py", "triggers_app/migration.py"},
    "docs/how-to/test-your-application.md": {  # run by test_testing_guide.py
        "myapp/models.py",
        *("tests/conftest.py", "tests/test_contacts.py"),
        *("rolled_back/conftest.py", "in_memory/conftest.py", "in_parallel/conftest.py"),
    },
    "docs/how-to/postgresql.md": {"postgresql_app/models.py"},
    "docs/how-to/move-to-postgresql.md": {"move_app/copy.py"},  # run by test_move_to_postgresql.py
    "docs/how-to/without-prepare.md": {"plain_engine/models.py"},
    "docs/how-to/updates.md": {"visits_app/visits.py"},  # run by test_operators_guides.py
    "docs/how-to/from-bullmq.md": {"bullmq_app/fill.py", "bullmq_app/compare.py"},
}
"""Which pages have files, and which."""


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


def test_all_files_of_the_pages_are_found() -> None:
    found = {page: {each.file for each in blocks(text) if each.file} for page, text in EVERYTHING.items()}
    assert {page: files for page, files in found.items() if files} == FILES


def test_guides_have_packages_of_their_own() -> None:
    imported = [files for page, files in FILES.items() if not page.endswith("/test-your-application.md")]
    packages = [{file.partition("/")[0] for file in files if "/" in file} for files in imported]
    assert sum(map(len, packages)) == len(set().union(*packages))


def test_readme_registers_and_captures(guide: Callable[[str], Path]) -> None:
    guide("README.md")
    models = with_tables("myapp.models")
    with delivering(models) as tester:
        with models.Session.begin() as session:
            session.add(models.Contact(name="Ada", tenant_id="acme"))
        tester.drain()
        assert tester.document("contacts", "1") == {"name": "Ada", "tenantId": "acme"}


def test_postgresql_registers_and_captures_without_being_prepared(
    guide: Callable[[str], Path], postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide("docs/how-to/postgresql.md")
    with postgres.database(empty=True) as url:
        monkeypatch.setenv("OUTBOX_DATABASE_URL", url.render_as_string(hide_password=False))
        models = with_tables("postgresql_app.models")
        with delivering(models) as tester:
            with models.Session.begin() as session:
                session.add(models.Contact(name="Ada", tenant_id="acme"))
            tester.drain()
            assert tester.document("contacts", "1") == {"name": "Ada", "tenantId": "acme"}
        models.engine.dispose()


def test_fastapi_creates_a_contact_that_can_be_found(guide: Callable[[str], Path]) -> None:
    guide("docs/how-to/fastapi.md")
    with delivering(with_tables("fastapi_app.models")) as tester:
        client = client_of(importlib.import_module("fastapi_app.api").app)
        created = client.post("/contacts", params={"name": "Ada Lovelace", "tenant": "acme"})
        assert (created.status_code, created.json()) == (201, {"id": 1})
        tester.assert_enqueued("contacts", "1", action="refresh", tenant_id="acme", times=1)
        tester.drain()
        assert tester.document("contacts", "1") == {"name": "Ada Lovelace", "tenantId": "acme"}


def test_fastapi_with_a_session_for_each_request_reads_without_the_lock_and_notes_what_it_changes(
    guide: Callable[[str], Path],
) -> None:
    guide("docs/how-to/fastapi.md")
    with delivering(models := with_tables("fastapi_app.models")) as tester:
        module = importlib.import_module("fastapi_app.per_request")
        client = client_of(module.app)
        with models.Session.begin() as session:
            session.add(models.Contact(name="Ada", tenant_id="acme"))
        with contextmanager(module.request_session)() as reading:  # the request of somebody else, still under way
            assert reading.get_one(models.Contact, 1).name == "Ada"
            assert client.put("/contacts/1", params={"name": "Grace"}).json() == {"name": "Grace"}
        assert client.get("/contacts").json() == ["Grace"]
        tester.drain()
        assert tester.document("contacts", "1") == {"name": "Grace", "tenantId": "acme"}


def test_fastapi_answers_when_the_change_can_be_found(
    guide: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide("docs/how-to/fastapi.md")
    models = with_tables("fastapi_app.models")
    monkeypatch.setenv("OUTBOX_DESTINATION", "embedded")
    monkeypatch.setenv("OUTBOX_EMBEDDED_PATH", str(tmp_path / "search.db"))
    wait = OutboxRepository.wait_until_synced
    # The snippet waits for 5 s, as long as a person does; a busy machine may stand still for that.
    monkeypatch.setattr(
        OutboxRepository,
        "wait_until_synced",
        lambda repo, timeout, **given: wait(repo, max(timeout, LIMIT_S), **given),
    )
    client = client_of(importlib.import_module("fastapi_app.api").app)
    with relay_beside(models, tmp_path / "search.db"):
        client.post("/contacts", params={"name": "Ada", "tenant": "acme"})
        assert client.patch("/contacts/1", params={"name": "Grace"}).json() == {"name": "Grace"}
        with Search() as search:
            (hit,) = search("contacts", "grace")
    assert hit.source["name"] == "Grace"


def test_fastapi_with_async_sessions_captures_and_takes_explicit_calls(guide: Callable[[str], Path]) -> None:
    guide("docs/how-to/fastapi.md")
    with delivering(with_tables("fastapi_app.models")) as tester:
        client = client_of(importlib.import_module("fastapi_app.async_api").app)
        assert client.post("/contacts", params={"name": "Ada", "tenant": "acme"}).json() == {"id": 1}
        tester.drain()
        assert tester.document("contacts", "1") == {"name": "Ada", "tenantId": "acme"}
        assert tester.document("notes", "welcome-1") == {"text": "Ada is new here", "contact": 1}


def test_flask_creates_and_removes_a_contact(guide: Callable[[str], Path]) -> None:
    guide("docs/how-to/flask-sqlalchemy.md")
    with delivering(with_tables("plain_flask.models")) as tester:
        creates_and_removes(importlib.import_module("plain_flask.web").app, tester)


def test_flask_sqlalchemy_creates_and_removes_a_contact_in_the_file_that_the_guide_names(
    guide: Callable[[str], Path], tmp_path: Path
) -> None:
    guide("docs/how-to/flask-sqlalchemy.md")
    module = importlib.import_module("flask_app")
    app = module.create_app()
    (url,) = re.findall(r"OUTBOX_DATABASE_URL=sqlite:///(\S+)", EVERYTHING["docs/how-to/flask-sqlalchemy.md"])
    with app.app_context():
        engine = module.db.engine
    assert Path(engine.url.database) == tmp_path / url
    schema.upgrade(engine)
    with OutboxTester(engine, module.registry) as tester:
        creates_and_removes(app, tester)
    engine.dispose()


def creates_and_removes(app: Any, tester: OutboxTester) -> None:
    client = app.test_client()
    created = client.post("/contacts", json={"name": "Ada", "tenant_id": "acme"})
    assert (created.status_code, created.get_json()) == (201, {"id": 1})
    tester.drain()
    assert tester.document("contacts", "1") == {"name": "Ada", "tenantId": "acme"}
    assert client.delete("/contacts/1").status_code == 204
    tester.drain()
    assert tester.document("contacts", "1") is None


def test_sqlmodel_creates_and_removes_a_contact(guide: Callable[[str], Path]) -> None:
    guide("docs/how-to/sqlmodel.md")
    import sqlmodel

    models = with_tables("sqlmodel_app.models")
    try:
        sqlmodel.SQLModel.metadata.create_all(models.engine)
        with delivering(models) as tester:
            client = client_of(importlib.import_module("sqlmodel_app.api").app)
            created = client.post("/contacts", json={"name": "Ada", "tenant_id": "acme"})
            assert (created.status_code, created.json()["id"]) == (201, 1)
            tester.drain()
            assert tester.document("contacts", "1") == {"name": "Ada", "tenantId": "acme"}
            assert client.delete("/contacts/1").status_code == 204
            tester.drain()
            assert tester.document("contacts", "1") is None
    finally:
        sqlmodel.SQLModel.metadata.clear()


def test_search_of_an_application_finds_and_says_when_it_cannot(
    guide: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guide("docs/how-to/search.md")
    monkeypatch.setenv("OUTBOX_DESTINATION", "embedded")
    monkeypatch.setenv("OUTBOX_EMBEDDED_PATH", str(tmp_path / "search.db"))
    module = importlib.import_module("search_app.find")
    assert module.find("ada lovlace", "acme") == []
    assert capsys.readouterr().out.startswith("not now: ")
    engine = create_engine("sqlite:///app.db")
    sqlite.prepare(engine)
    schema.upgrade(engine)
    outbox = Outbox(engine)
    outbox.index("contacts", "7", {"name": "Ada Lovelace", "tenantId": "acme"})
    destination = destination_of(load())
    outbox.drain(destination)
    (found,) = module.find("ada lovlace", "acme")
    assert (found["id"], found["name"]) == ("7", "Ada Lovelace")
    module.search.close()
    destination.close()
    outbox.close()
    engine.dispose()


def test_triggers_note_plain_sql_before_and_after_a_migration_that_rebuilds_the_table(
    guide: Callable[[str], Path],
) -> None:
    page = "docs/how-to/triggers.md"
    guide(page)
    models = with_tables("triggers_app.models")
    with models.engine.begin() as connection:
        connection.execute(text("INSERT INTO contacts (tenant_id, name) VALUES ('acme', 'Ada Lovelace')"))
        triggers.install(connection, models.registry)
    statement = first(EVERYTHING[page], "sql").strip().removesuffix(";")
    with delivering(models) as tester:
        tester.assert_nothing_enqueued()
        with models.engine.begin() as connection:
            connection.execute(text(statement))
        tester.drain()
        assert tester.document("contacts", "1") == {"name": "Ada King", "tenantId": "acme"}
        migration = importlib.import_module("triggers_app.migration")
        with models.engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
            migration.upgrade()
        with models.engine.begin() as connection:
            assert {each.state for each in triggers.status(connection, models.registry)} == {"ok"}
            connection.execute(text("UPDATE contacts SET name = NULL"))
        tester.drain()
        assert tester.document("contacts", "1") == {"name": None, "tenantId": "acme"}


def test_engine_without_prepare_takes_turns_with_a_relay(guide: Callable[[str], Path]) -> None:
    guide("docs/how-to/without-prepare.md")
    with_tables("plain_engine.models")
    engine = importlib.import_module("plain_engine.models").engine
    with OutboxTester(engine) as tester, Session(engine) as session:
        for number in range(3):
            sqlite.lock(session)
            OutboxRepository(session).index("contacts", str(number), {"name": "Ada"})
            session.commit()
            tester.drain()
        assert len(tester.search("contacts", "ada")) == 3


def test_rows_that_another_language_inserts_are_delivered(engine: Engine) -> None:
    statements = first(EVERYTHING["docs/how-to/another-language.md"], "sql")
    with engine.begin() as connection:
        for statement in statements.split(";\n"):
            if statement.strip():
                connection.execute(text(statement.replace('": ', '"\\: ')))
    with OutboxTester(engine) as tester:
        tester.drain()
        assert tester.document("contacts", "contact-123") == {"name": "Ada"}


@pytest.mark.slow
def test_rows_that_another_language_inserts_into_postgresql_are_delivered(postgres: Postgres) -> None:
    page = EVERYTHING["docs/how-to/another-language.md"]
    (last_id,) = re.findall(r"asks for `(.+?)` instead", page)
    with postgres.database() as url:
        engine = create_engine(url)
        with OutboxTester(engine) as tester:
            with engine.begin() as connection:
                connection.exec_driver_sql(first(page, "sql").replace("last_insert_rowid()", last_id))
            tester.drain()
            assert tester.document("contacts", "contact-123") == {"name": "Ada"}
        engine.dispose()


def test_rows_are_delivered_and_found_without_a_cluster(engine: Engine, tmp_path: Path) -> None:
    outbox = Outbox(engine)
    outbox.index("contacts", "c1", {"name": "Ada Lovelace"})
    outbox.close()
    done = subprocess.run(
        ["bash", "-e", "-c", first(EVERYTHING["docs/how-to/embedded.md"], "sh")],
        cwd=tmp_path,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ada Lovelace" in done.stdout


@pytest.mark.elasticsearch
def test_moving_over_from_a_worker_that_writes_to_an_index_of_its_own(
    guide: Callable[[str], Path], clean_node: Node
) -> None:
    """Fill, compare and cut over, with the guide's own files and its own call."""
    from outbox.destinations.elasticsearch.destination import ElasticsearchDestination

    page = EVERYTHING["docs/how-to/from-bullmq.md"]
    application = guide("docs/how-to/from-bullmq.md")
    of_the_readme = next(each.content for each in blocks(EVERYTHING["README.md"]) if each.file)
    (application / "bullmq_app" / "models.py").write_text(of_the_readme)
    models = with_tables("bullmq_app.models")

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

    def run(module: str, *arguments: str) -> str:
        command = [sys.executable, "-m", f"bullmq_app.{module}", *arguments]
        return subprocess.run(
            command, cwd=application, check=True, capture_output=True, text=True, timeout=LIMIT_S
        ).stdout

    run("fill")
    outbox, destination = Outbox(models.engine), ElasticsearchDestination([clean_node.url])
    outbox.drain(destination)
    assert run("compare", clean_node.url) == "2500 old, 2500 new, 0 different: []\n"
    outbox.index("shadow-contacts", "7", {"name": "Grace"})
    outbox.drain(destination)
    assert run("compare", clean_node.url) == "2500 old, 2500 new, 1 different: ['7']\n"

    cut_over = json.loads(page.split("/_aliases")[1].split("-d '")[1].split("'\n```")[0])
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
