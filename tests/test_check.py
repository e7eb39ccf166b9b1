"""What `outbox-relay check` finds, and that it says what to do."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, create_engine

from outbox import EntityRegistry, check, sqlite
from outbox.cli import main
from outbox.destinations.base import Health, IndexFacts
from outbox.destinations.elasticsearch.destination import ElasticsearchDestination
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.destinations.kept import Kept
from outbox.store import pauses, upkeep, verifications
from outbox.store.models import FOUND, metadata, now_ms
from outbox.store.sqlite import findings as of_sqlite
from tests.support.models import Contact
from tests.support.node import Node
from tests.support.outbox import Outbox
from tests.support.proxy import FaultProxy


def by_name(findings: list[check.Finding]) -> dict[str, check.Finding]:
    return {finding.name: finding for finding in findings}


def levels(findings: list[check.Finding]) -> dict[str, str]:
    return {finding.name: finding.level for finding in findings}


@pytest.fixture
def untouched(tmp_path: Path) -> Iterator[Engine]:
    """An engine as the command uses it: not prepared, so that looking changes nothing."""
    made = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    yield made
    made.dispose()


class Answers:
    """A destination that says what a test wants to be said; only what `check` asks."""

    def __init__(self, health: Health | None = None, facts: IndexFacts | None = None, kept: Kept = Kept()) -> None:  # noqa: B008
        self._health, self._facts, self._kept = health, facts, kept

    def health(self) -> Health:
        assert self._health
        return self._health

    def inspect_index(self, _name: str, _target: str) -> IndexFacts:
        assert self._facts
        return self._facts

    def kept(self, _target: str) -> Kept:
        return self._kept


# -- the database ---------------------------------------------------------------------------------------------------


def test_missing_tables_fail_with_the_remedy(untouched: Engine) -> None:
    found = by_name(check.database(untouched))["schema"]
    assert (found.level, found.remedy) == ("fail", "run 'outbox-relay migrate'")


@pytest.mark.sqlite
def test_tables_of_a_newer_version_fail_with_the_remedy(outbox: Outbox) -> None:
    outbox.raw("UPDATE outbox_alembic_version SET version_num = '9999'")
    found = by_name(check.database(outbox.engine))["schema"]
    assert (found.level, found.remedy) == ("fail", "upgrade outbox-relay, and restart what ran before")


def test_tables_of_the_applications_own_migrations_are_not_said_to_have_a_revision(untouched: Engine) -> None:
    metadata.create_all(untouched)
    found = by_name(check.database(untouched))["schema"]
    assert (found.level, found.found) == ("ok", "outbox tables, made by other migrations")


@pytest.mark.sqlite
def test_healthy_database_warns_only_of_the_missing_relay(outbox: Outbox) -> None:
    found = levels(check.database(outbox.engine))
    del found["disk"]  # how full that of this machine is says nothing
    assert {name for name, level in found.items() if level != "ok"} == {"relays"}


def test_journal_that_is_no_wal_fails_and_stays_as_it_was(untouched: Engine, tmp_path: Path) -> None:
    metadata.create_all(untouched)
    assert levels(check.database(untouched))["journal"] == "fail"
    with sqlite3.connect(tmp_path / "app.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()


def test_file_that_is_no_database_fails_without_a_traceback(untouched: Engine, tmp_path: Path) -> None:
    (tmp_path / "app.db").write_text("this is a letter to grandmother\n" * 100)
    found = by_name(check.database(untouched))["database"]
    assert found.level == "fail"
    assert "not a database" in found.found


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"])
def test_network_filesystem_fails(kind: str) -> None:
    found = of_sqlite.filesystem(Path("/srv/app/app.db"), [("/", "ext4"), ("/srv", kind)])
    assert (found.level, found.found) == ("fail", f"/srv/app/app.db is on {kind}")


def test_filesystem_is_the_innermost_and_last_one_mounted() -> None:
    mounts = [("/", "nfs"), ("/srv", "nfs"), ("/srv", "ext4"), ("/srv/other", "cifs"), ("/s", "9p")]
    assert of_sqlite.filesystem(Path("/srv/app.db"), mounts).level == "ok"


@pytest.mark.parametrize(
    ("free", "level"), [(10**9, "ok"), (10**9 - 1, "warn"), (10**8, "warn"), (10**8 - 1, "fail"), (0, "fail")]
)
def test_disk_that_fills_up(free: int, level: str) -> None:
    found = of_sqlite.disk(Path("/srv/app.db"), free)
    assert (found.level, bool(found.remedy)) == (level, level != "ok")


def test_old_and_dead_rows_and_a_pause_are_warned_of(outbox: Outbox) -> None:
    outbox.index("contacts", "c1", {})
    dead = outbox.index("contacts", "c2", {})
    outbox.raw("UPDATE outbox_events SET created_at = created_at - 3600000")
    outbox.raw("UPDATE outbox_events SET state = 'dead' WHERE id = :id", id=dead)
    pauses.pause(outbox.store(), "maintenance", "ada", now_ms())
    found = levels(check.database(outbox.engine))
    assert (found["queue"], found["dead rows"], found["pause"]) == ("warn", "warn", "warn")


def test_killed_relay_that_is_still_listed_is_no_relay(outbox: Outbox) -> None:
    relay = outbox.store().register_relay("host", 1, "0.1.0", now_ms())
    assert levels(check.database(outbox.engine))["relays"] == "ok"
    outbox.raw("UPDATE outbox_relays SET heartbeat_at = heartbeat_at - 60000 WHERE id = :id", id=relay)
    found = by_name(check.database(outbox.engine))["relays"]
    assert (found.level, found.found) == ("warn", "0 running, 1 listed without a sign of life")


def test_index_that_a_relay_waits_for_is_named(outbox: Outbox) -> None:
    store = outbox.store()
    relay = store.register_relay("host", 1, "0.1.0", now_ms())
    breaker = {"scope": "index", "index": "contacts", "reason": "closed"}
    upkeep.heartbeat(store, relay, [breaker], store.lock_times, now_ms())
    found = by_name(check.database(outbox.engine))["waiting"]
    assert (found.level, found.found) == ("warn", f"relay {relay} waits for contacts: closed")


def test_clock_that_was_set_back_is_warned_of(outbox: Outbox) -> None:
    outbox.store().register_relay("host", 1, "0.1.0", now_ms() + 3_600_000)
    assert levels(check.database(outbox.engine))["clock"] == "warn"


# -- the destination ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["8.19.0", "8.20.1", "9.0.0", "9.2.0"])
def test_supported_version(version: str) -> None:
    found = check.destination(Answers(Health("elasticsearch", version, "green")))  # type: ignore[arg-type]
    assert levels(found) == {"destination": "ok", "cluster": "ok"}


@pytest.mark.parametrize("version", ["7.17.9", "8.1.9", "8.2.0", "8.18.9", "10.0.0", "?"])
def test_unsupported_version_fails(version: str) -> None:
    found = check.destination(Answers(Health("elasticsearch", version, "red")))  # type: ignore[arg-type]
    assert levels(found) == {"destination": "fail", "cluster": "fail"}


@pytest.mark.parametrize(
    ("facts", "level", "remedy"),
    [
        (IndexFacts(True, ("c-1",), "24h"), "ok", ""),
        (IndexFacts(True, ("c-1",), "2d"), "ok", ""),
        (IndexFacts(True, ("c-1",), "1440m"), "ok", ""),
        (IndexFacts(True, ("c-1",), "60s"), "fail", 'PUT c-1/_settings {"index.gc_deletes": "24h"}'),
        (IndexFacts(True, ("c-1",), "-1"), "fail", 'PUT c-1/_settings {"index.gc_deletes": "24h"}'),
        (
            IndexFacts(False, (), "60s"),
            "fail",
            "run 'outbox-relay reindex --all', which makes it from the database; its rows",
        ),
        (IndexFacts(False, ("c-2",), "60s"), "fail", "run 'outbox-relay epoch advance': rows go to c-2 then"),
        (
            IndexFacts(False, ("c-2", "c-3"), "60s"),
            "fail",
            "make alias contacts point to one index and to nothing else",
        ),
        (IndexFacts(True, (), "24h"), "fail", "run 'outbox-relay reindex --all', which makes it from the database, or"),
        (
            IndexFacts(True, ("c-2",), "24h"),
            "fail",
            "run 'outbox-relay epoch advance': rows go to c-2 then, as its readers do; or make alias contacts point",
        ),
        (IndexFacts(True, ("c-1", "c-2"), "24h"), "fail", "make alias contacts point to c-1"),
    ],
)
def test_index_that_is_not_as_it_should_be_fails(outbox: Outbox, facts: IndexFacts, level: str, remedy: str) -> None:
    outbox.store().register_index("contacts", "c-1")
    (found,) = check.indexes(outbox.engine, Answers(facts=facts), "24h")  # type: ignore[arg-type]
    assert (found.name, found.level) == ("index contacts", level)
    assert found.remedy.startswith(remedy)
    assert bool(found.remedy) == (level != "ok")


@pytest.mark.elasticsearch
def test_real_index_that_forgets_deletes_or_has_two_readers_fails(
    outbox: Outbox, destination: ElasticsearchDestination, node: Node
) -> None:
    def found() -> check.Finding:
        (finding,) = check.indexes(outbox.engine, destination, "24h")
        return finding

    outbox.index("contacts", "c1", {})
    outbox.drain(destination)
    assert set(levels(check.destination(destination)).values()) == {"ok"}
    assert found().level == "ok"
    node.request("PUT", "/contacts-000001/_settings", {"index.gc_deletes": "1s"})
    assert "forgets deletes after 1s" in found().found
    node.request("PUT", "/contacts-000002", {"aliases": {"contacts": {}}})
    assert "its readers get contacts-000001, contacts-000002" in found().found
    node.request("DELETE", "/contacts-000001")
    assert "contacts-000001, which is missing" in found().found


@pytest.mark.elasticsearch
def test_destination_that_is_away_fails(destination: ElasticsearchDestination, proxy: FaultProxy) -> None:
    proxy.down()
    assert levels(check.destination(destination)) == {"destination": "fail"}
    proxy.up()


def test_embedded_destination_is_well_and_never_forgets_a_delete(outbox: Outbox, tmp_path: Path) -> None:
    made = EmbeddedDestination(tmp_path / "search.db")
    assert check.destination(made) == [
        check.Finding("destination", "ok", f"embedded SQLite {sqlite3.sqlite_version}"),
        check.Finding("file", "ok", "no file yet, the first row makes it, or 'outbox-relay reindex --all'"),
    ]
    assert not (tmp_path / "search.db").exists()
    outbox.index("contacts", "c1", {})
    outbox.drain(made)
    (found,) = check.indexes(outbox.engine, made, "8760h")
    assert (found.level, found.found) == ("ok", "goes to contacts-000001, remembers deletes for good")
    made.close()
    assert check.destination(made)[1].found == "ok"
    made.close()


def test_embedded_file_that_is_none_fails_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "search.db").write_text("no database\n" * 100)
    (found,) = check.destination(EmbeddedDestination(tmp_path / "search.db"))
    assert (found.level, "OUTBOX_EMBEDDED_PATH" in found.remedy) == ("fail", True)


# -- the command ----------------------------------------------------------------------------------------------------


def test_command_without_a_database_has_nothing_to_check() -> None:
    result = CliRunner().invoke(main, ["check"])
    assert result.exit_code == 2
    assert "OUTBOX_DATABASE_URL" in result.stderr


def test_command_reports_a_missing_file_and_does_not_create_it(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["check", "--json", "--database-url", "sqlite:///missing.db"])
    found = {finding["name"]: finding["level"] for finding in json.loads(result.stdout)}
    assert (result.exit_code, found) == (1, {"database": "fail", "destination": "fail"})
    assert not (tmp_path / "missing.db").exists()


def test_command_finds_a_journal_that_is_no_wal(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "app.db").executescript("CREATE TABLE t (id); INSERT INTO t VALUES (1)").close()
    result = CliRunner().invoke(main, ["check", "--database-url", "sqlite:///app.db"])
    assert result.exit_code == 1
    assert "fail  journal: journal mode delete\n      → call outbox.sqlite.prepare(engine)" in result.stdout


def test_prepared_database_is_found_to_be_right(tmp_path: Path, untouched: Engine) -> None:
    prepared = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    sqlite.prepare(prepared)
    metadata.create_all(prepared)
    prepared.dispose()
    assert levels(check.database(untouched))["journal"] == "ok"


def test_verification_that_repaired_a_part_of_its_drift_stays_a_warning(outbox: Outbox) -> None:
    store = outbox.store()
    for repaired, level in ((1, "warn"), (10, "ok")):
        id_ = verifications.begin(store, "me", ["contacts"], None, 1.0, now_ms())
        assert id_ is not None
        of_it = {"documents": 1, "different": 1, "failed": 9, "repaired": repaired}
        verifications.finish(store, id_, {**dict.fromkeys(FOUND, 0), **of_it}, None, now_ms())
        assert by_name(check.database(outbox.engine))["verification"].level == level
        status = CliRunner().invoke(main, ["status"], env={"OUTBOX_DATABASE_URL": outbox.url}).stdout
        assert ("→ outbox-relay verify --repair" in status) == (level == "warn")


def test_last_verification_is_told_and_its_drift_is_a_warning(outbox: Outbox) -> None:
    def found() -> check.Finding:
        return by_name(check.database(outbox.engine))["verification"]

    def verified(error: str | None = None, **drift: int) -> None:
        store = outbox.store()
        id_ = verifications.begin(store, "me", ["contacts"], None, 1.0, now_ms())
        assert id_ is not None
        verifications.finish(store, id_, {**dict.fromkeys(FOUND, 0), "documents": 7, **drift}, error, now_ms())

    assert (found().level, found().found.startswith("none so far")) == ("ok", True)
    verified()
    assert (found().level, found().found) == ("ok", "the last, 0 h ago: 7 documents, no drift")
    verified(missing=2, extra=1)
    assert (found().level, found().found) == ("warn", "the last, 0 h ago: 7 documents, 2 missing, 1 extra")
    assert "verify --repair" in found().remedy
    verified(missing=2, repaired=2)
    assert (found().level, found().found.endswith("2 rows written to repair it")) == ("ok", True)
    verified("stopped before its end")
    assert (found().level, "not finish: stopped" in found().found) == ("warn", True)


@pytest.mark.parametrize(
    ("kept", "says", "remedy"),
    [
        (Kept(excludes=("body",)), "leaves out body: verify cannot compare that", "mappings whose _source is complete"),
        (Kept(stores_none=True), "stores no _source", "send full documents"),
        (Kept(pipelines=("embed", "stamp")), "passes pipeline embed and stamp", "index.final_pipeline"),
        (Kept(synthetic=True), "_source of the index is synthetic", "a stored _source"),
    ],
)
def test_index_that_does_not_give_documents_back_as_sent_is_named(
    outbox: Outbox, kept: Kept, says: str, remedy: str
) -> None:
    outbox.store().register_index("contacts", "c-1")
    answers = Answers(facts=IndexFacts(True, ("c-1",), "24h"), kept=kept)
    good, found = check.indexes(outbox.engine, answers, "24h")  # type: ignore[arg-type]
    assert (good.level, found.level, found.name) == ("ok", "warn", "index contacts")
    assert says in found.found
    assert remedy in found.remedy


@pytest.mark.parametrize(("skip", "levels"), [(True, ["ok", "warn"]), (False, ["ok"])])
def test_index_of_which_nothing_can_be_skipped_is_named(outbox: Outbox, skip: bool, levels: list[str]) -> None:
    outbox.store().register_index("contacts", "c-1")
    registry = EntityRegistry()
    registry.add(Contact, index="contacts", fields=["name"], skip_unchanged=skip)
    answers = Answers(facts=IndexFacts(True, ("c-1",), "24h"), kept=Kept(vectors={"v": 1e-6}))
    found = check.indexes(outbox.engine, answers, "24h", registry)  # type: ignore[arg-type]
    assert [each.level for each in found] == levels
    assert not skip or found[1].found.endswith("all of its documents are written, in spite of skip_unchanged")
