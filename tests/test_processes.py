"""Real relay processes: killed, stopped, resumed, told to end. The database and the index must not notice."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from outbox import OutboxRepository, __version__, sqlite
from outbox.store.models import EPOCH_STEP
from tests.support import LIMIT_S
from tests.support.node import Node
from tests.support.outbox import Outbox
from tests.support.proxy import FaultProxy, bulk, hang, hold_answer, reply
from tests.support.relays import Relays, until

pytestmark = pytest.mark.elasticsearch


def test_relay_killed_between_answer_and_record_loses_and_doubles_nothing(
    outbox: Outbox, relays: Relays, proxy: FaultProxy, node: Node
) -> None:
    row = outbox.index("contacts", "c1", {"name": "Ada"})
    proxy.on(bulk, hold_answer, times=1)
    first = relays.start(OUTBOX_REQUEST_TIMEOUT="50")
    proxy.wait_held()
    assert node.get("contacts", "c1") == {"name": "Ada"}  # applied …
    assert outbox.state(row) == "claimed"  # … but not recorded
    first.kill()
    first.wait()
    proxy.release()

    relays.start()
    until(lambda: outbox.state(row) == "done", "the next relay settles the row, long before the lease ends")
    assert outbox.outcome(row) == "applied"
    assert node.version("contacts", "c1") == outbox.row(row)["version"]


def test_relay_stopped_past_its_lease_and_resumed_overwrites_nothing(
    outbox: Outbox, relays: Relays, proxy: FaultProxy, node: Node
) -> None:
    old = outbox.index("contacts", "c1", {"n": 1})
    proxy.on(bulk, hold_answer, times=1)
    sleeper = relays.start(OUTBOX_REQUEST_TIMEOUT="50")
    proxy.wait_held()
    sleeper.send_signal(signal.SIGSTOP)
    outbox.raw("UPDATE outbox_events SET lease_expires_at = lease_expires_at - 60000")  # it sleeps for a lease
    relays.start()
    until(lambda: outbox.state(old) == "done", "the lease ends and the other relay takes the row")
    new = outbox.index("contacts", "c1", {"n": 2})
    until(lambda: outbox.state(new) == "done", "the other relay goes on")
    before = outbox.row(old)

    proxy.release()
    sleeper.send_signal(signal.SIGCONT)
    until(lambda: "claimed by another relay" in relays.log(0), "the sleeper notices that its claim is lost")
    assert outbox.row(old) == before
    assert node.get("contacts", "c1") == {"n": 2}


def test_sigterm_finishes_what_is_in_flight_and_exits_0(outbox: Outbox, relays: Relays, proxy: FaultProxy) -> None:
    row = outbox.index("contacts", "c1", {})
    proxy.on(bulk, hold_answer, times=1)
    relay = relays.start(OUTBOX_REQUEST_TIMEOUT="50")
    proxy.wait_held()
    relay.terminate()
    proxy.release()
    assert relay.wait(LIMIT_S) == 0
    assert outbox.state(row) == "done"
    assert outbox.relays() == []


def test_sigterm_releases_what_does_not_finish_in_time(outbox: Outbox, relays: Relays, proxy: FaultProxy) -> None:
    row = outbox.index("contacts", "c1", {})
    proxy.on(bulk, hang)
    relay = relays.start(OUTBOX_SHUTDOWN_TIMEOUT="0.2", OUTBOX_REQUEST_TIMEOUT="50")
    proxy.wait_for(bulk)
    relay.terminate()
    assert relay.wait(LIMIT_S) == 0
    assert (outbox.state(row), outbox.row(row)["attempts"]) == ("pending", 0)


def test_second_signal_exits_at_once(outbox: Outbox, relays: Relays, proxy: FaultProxy) -> None:
    row = outbox.index("contacts", "c1", {})
    proxy.on(bulk, hang)
    relay = relays.start(OUTBOX_SHUTDOWN_TIMEOUT="600", OUTBOX_REQUEST_TIMEOUT="50")
    proxy.wait_for(bulk)
    relay.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        relay.wait(0.5)
    relay.send_signal(signal.SIGTERM)
    assert relay.wait(LIMIT_S) == 128 + signal.SIGTERM
    proxy.clear()
    relays.start()
    until(lambda: outbox.state(row) == "done", "another relay delivers the row")


def test_node_away_under_writes_spends_no_attempt_and_loses_nothing(
    outbox: Outbox, relays: Relays, proxy: FaultProxy, node: Node
) -> None:
    relays.start()
    written = [outbox.index("contacts", f"c{n}", {"n": n}) for n in range(20)]
    until(lambda: outbox.counts()["done"] == 20, "the first rows arrive")
    proxy.down()
    written += [outbox.index("contacts", f"c{n}", {"n": n}) for n in range(20, 60)]
    until(lambda: "destination unreachable" in relays.log(), "the relay notices")
    status = until(
        lambda: json.loads(relays.call("status", "--json").stdout)["breakers"], "status shows the open breaker"
    )
    assert status[0]["scope"] == "destination"
    proxy.up()
    until(lambda: outbox.counts()["done"] == 60, "everything arrives after the outage")
    assert {outbox.row(row)["attempts"] for row in written} == {0}
    assert len(node.documents("contacts")) == 60
    assert relays.log().count("destination unreachable") == 1
    assert relays.log().count("answers again") == 1


@pytest.mark.parametrize(
    ("fault", "patience", "says"),
    [pytest.param(hang, "5", "Connection timeout", id="hang"), pytest.param(reply(503), "50", "HTTP 503", id="503")],
)
def test_outage_is_an_error_of_its_first_row_only(
    outbox: Outbox, relays: Relays, proxy: FaultProxy, fault: Any, patience: str, says: str
) -> None:
    proxy.on(bulk, fault)
    rows = outbox.index_many("contacts", [(f"c{n}", {}) for n in range(5)])
    relays.start(OUTBOX_REQUEST_TIMEOUT=patience)
    until(lambda: outbox.row(rows[0])["deliveries"] > 2, "the relay tries again")
    proxy.clear()
    until(lambda: outbox.counts()["done"] == 5, "everything arrives after the outage")
    errors = [line.partition("[ES] Error ")[2] for line in relays.log().splitlines() if "[ES] Error" in line]
    assert len(errors) == 1
    assert errors[0].startswith(f"index contacts/c0: {says}")
    assert relays.log().count("destination unreachable") == 1


def test_elasticsearch_stopped_and_started_again_under_writes_loses_nothing(
    outbox: Outbox, relays: Relays, node: Node
) -> None:
    relays.start()
    written = [outbox.index("contacts", "before", {"n": 0})]
    until(lambda: outbox.counts()["done"] == 1, "the first row arrives")
    node.stop()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:  # twenty seconds of writes into the outage
        written.append(outbox.index("contacts", f"c{len(written)}", {"n": len(written)}))
        time.sleep(0.05)
    assert outbox.counts()["dead"] == 0
    node.restart()
    until(lambda: outbox.counts()["done"] == len(written), "everything arrives after the restart")
    assert {outbox.row(row)["attempts"] for row in written} == {0}
    assert len(node.documents("contacts")) == len(written)


def test_application_that_reads_and_then_writes_beside_busy_relays_never_fails_and_loses_no_count(
    outbox: Outbox, relays: Relays, node: Node
) -> None:
    outbox.raw("CREATE TABLE counters (id TEXT PRIMARY KEY, n INTEGER)")
    outbox.raw("INSERT INTO counters VALUES ('a', 0), ('b', 0)")
    for _ in range(2):
        relays.start(OUTBOX_BATCH_ROWS="5", OUTBOX_LOG_OPERATIONS="false", OUTBOX_HEARTBEAT_INTERVAL="0.1")
    until(lambda: len(outbox.relays()) == 2, "both relays are up")

    def count(document_id: str) -> None:
        for _ in range(150):
            with outbox.sessions.begin() as session:
                sqlite.lock(session)  # else the other thread may read the same number
                read = text("SELECT n FROM counters WHERE id = :id")
                n = session.execute(read, {"id": document_id}).scalar_one() + 1
                session.execute(text("UPDATE counters SET n = :n WHERE id = :id"), {"n": n, "id": document_id})
                OutboxRepository(session).index("counters", document_id, {"n": n})

    noise = 0
    with ThreadPoolExecutor(4) as application:
        counting = [application.submit(count, each) for each in ("a", "b", "a", "b")]
        while wait(counting, 0.01).not_done:
            if outbox.counts()["pending"] < 500:  # keeps the relays claiming and recording all the time
                noise += len(outbox.index_many("noise", [(f"n{noise + n}", {}) for n in range(500)]))
        for each in counting:
            each.result()  # raises "database is locked" if it met that
    until(lambda: outbox.counts()["done"] == 600 + noise, "everything arrives")
    assert node.documents("counters") == {"a": {"n": 300}, "b": {"n": 300}}
    assert "tries again" not in relays.log(0) + relays.log(1)


def test_commit_is_delivered_without_waiting_for_the_poll(outbox: Outbox, relays: Relays) -> None:
    relays.start(OUTBOX_POLL_INTERVAL="60")
    until(lambda: outbox.relays(), "the relay is up")
    row = outbox.index("contacts", "c1", {})
    until(lambda: outbox.state(row) == "done", "the commit wakes the relay", 45)


def test_drain_exits_0_when_all_is_delivered_and_1_when_rows_died(outbox: Outbox, relays: Relays) -> None:
    outbox.index_many("contacts", [(f"c{n}", {"n": n}) for n in range(100)])
    assert relays.call("run", "--drain").returncode == 0
    outbox.index("contacts", "bad", {"n": "x"})
    drained = relays.call("run", "--drain")
    assert (drained.returncode, "dead list" in drained.stderr) == (1, True)
    assert "[ES] Error index contacts/bad: " in drained.stderr


def test_start_is_one_line_that_says_who_delivers_from_where_to_where(outbox: Outbox, relays: Relays) -> None:
    outbox.index("contacts", "c1", {})
    address = relays.url.replace("http://", "http://elastic:s3cret@")
    log = relays.call("run", "--drain", "--concurrency", "3", OUTBOX_ELASTICSEARCH_URL=address).stderr
    (line,) = [line for line in log.splitlines() if "relay 1 delivers" in line]
    assert line.endswith(
        f"outbox-relay {__version__}: relay 1 delivers 1 row of {outbox.engine.url.database} to {relays.url}, "
        "3 requests at a time"
    )
    assert "s3cret" not in log


def test_two_killed_and_restarted_relays_end_with_equality(outbox: Outbox, relays: Relays, node: Node) -> None:
    expected: dict[str, Any] = {}
    for round_ in range(4):
        one, two = relays.start(), relays.start()
        for n in range(150):
            document_id = f"c{(n * 7 + round_) % 90}"
            if n % 5 == 4:
                outbox.delete("contacts", document_id)
                expected.pop(document_id, None)
            else:
                outbox.index("contacts", document_id, {"round": round_, "n": n})
                expected[document_id] = {"round": round_, "n": n}
        one.kill()
        two.kill()
        one.wait()
        two.wait()
    relays.call("run", "--drain")
    assert node.documents("contacts") == expected
    assert outbox.counts()["dead"] == 0


def test_pause_holds_all_rows_and_resume_lets_them_go(outbox: Outbox, relays: Relays) -> None:
    assert relays.call("pause", "--reason", "maintenance").returncode == 0
    relays.start()
    row = outbox.index("contacts", "c1", {})
    until(lambda: "maintenance" in relays.log(), "the relay says why it does nothing")
    assert json.loads(relays.call("status", "--json").stdout)["paused"]["reason"] == "maintenance"
    assert relays.call("run", "--drain").returncode == 2
    assert outbox.state(row) == "pending"
    relays.call("resume")
    until(lambda: outbox.state(row) == "done", "the row is delivered")


def test_operation_log_is_json_and_ids_forge_no_line(outbox: Outbox, relays: Relays) -> None:
    outbox.index("contacts", "c1\n2026-01-01 00:00:00 ERROR forged", {"n": 1})
    outbox.index("contacts", "c2", {"n": "x"})
    text = relays.call("run", "--drain").stderr
    assert "c1\\n2026-01-01 00:00:00 ERROR forged" in text
    outbox.index("contacts", "c3\n{forged}<red>", {"n": 1})
    lines = relays.call("run", "--drain", "--log-format", "json").stderr.strip().splitlines()
    entries = [json.loads(line) for line in lines if line.startswith("{")]
    assert {"action": "index", "index": "contacts", "id": "c3\n{forged}<red>"}.items() <= entries[1].items()


def test_dead_rows_are_listed_retried_and_discarded(outbox: Outbox, relays: Relays, node: Node) -> None:
    outbox.index("contacts", "c1", {"n": 1})
    first, second = outbox.index("contacts", "c2", {"n": "x"}), outbox.index("contacts", "c3", {"n": "y"})
    relays.call("run", "--drain")
    listed = json.loads(relays.call("dead", "list", "--json").stdout)
    assert [row["id"] for row in listed] == [first, second]
    assert relays.call("dead", "retry").returncode == 2  # say which
    node.request("DELETE", "/contacts-000001")
    node.request("PUT", "/contacts-000001", {"aliases": {"contacts": {}}, "mappings": {"dynamic": False}})
    assert "1 row is pending again" in relays.call("dead", "retry", str(first)).stdout
    assert relays.call("run", "--drain").returncode == 0
    assert node.get("contacts", "c2") == {"n": "x"}
    assert relays.call("dead", "discard", "--all", stdin="n\n").returncode == 1
    assert "1 dead row is removed" in relays.call("dead", "discard", "--all", "--yes").stdout
    shown = json.loads(relays.call("show", str(first), "--json").stdout)
    assert shown["result"]["success"] is True
    assert shown["job"] == {
        "action": "index", "index": "contacts", "id": "c2", "document": {"n": "x"}, "tenantId": None
    }  # fmt: skip
    assert relays.call("show", str(second)).returncode == 1


def test_purge_asks_and_removes_only_pending_rows(outbox: Outbox, relays: Relays) -> None:
    outbox.index("contacts", "c1", {})
    relays.call("run", "--drain")
    outbox.index("contacts", "c2", {})
    assert relays.call("purge", stdin="n\n").returncode == 1
    assert relays.call("purge", "--yes").stdout.startswith("1 row ")
    assert outbox.counts() == {"pending": 0, "claimed": 0, "done": 1, "dead": 0}


def test_epoch_advance_reads_the_indexes_first(outbox: Outbox, relays: Relays, node: Node) -> None:
    outbox.index("contacts", "c1", {})
    relays.call("run", "--drain")
    node.request("PUT", f"/contacts/_doc/c9?version={7 * EPOCH_STEP}&version_type=external", {})
    assert relays.call("epoch", "show").stdout.strip() == "1"
    assert "the epoch is 8 now" in relays.call("epoch", "advance", "--yes").stdout


def test_epoch_advance_reads_indexes_that_the_restored_tables_do_not_know(
    outbox: Outbox, relays: Relays, node: Node
) -> None:
    version = f"version={7 * EPOCH_STEP}&version_type=external"
    node.request("PUT", "/contacts-000002", {"aliases": {"contacts": {}}})
    node.request("PUT", f"/contacts-000002/_doc/c9?{version}", {})
    outbox.index("contacts", "c1", {})
    outbox.put_raw("No index, *", "d1", "{}")  # what another program wrote is not asked for
    assert "the epoch is 8 now" in relays.call("epoch", "advance", "--yes").stdout
    node.request("PUT", f"/contacts-000002/_doc/c9?version={9 * EPOCH_STEP}&version_type=external", {})
    outbox.store().register_index("contacts", "contacts-000001")  # as before a rebuild by hand
    said = relays.call("epoch", "advance", "--yes").stdout
    assert "the epoch is 10 now" in said
    assert "rows of index contacts go to contacts-000002 now" in said
    outbox.raw("UPDATE outbox_indexes SET physical_index = 'contacts-000001'")  # which is there from now on
    node.request("PUT", f"/contacts-000001/_doc/c9?version={11 * EPOCH_STEP}&version_type=external", {})
    said = relays.call("epoch", "advance", "--yes").stdout
    assert "the epoch is 12 now" in said  # by the version in that one, too
    assert "rows of index contacts go to contacts-000002 now, as its readers do, no longer to contacts-000001" in said


def test_epoch_does_not_advance_while_elasticsearch_is_away(outbox: Outbox, relays: Relays, proxy: FaultProxy) -> None:
    proxy.down()
    for _ in range(2):
        failed = relays.call("epoch", "advance", "--yes")
        assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
        assert relays.call("epoch", "show").stdout.strip() == "1"
        outbox.index("contacts", "c1", {})  # with and without an index to look at


def test_relay_that_can_have_no_lock_delivers_all_the_same(outbox: Outbox, relays: Relays, tmp_path: Path) -> None:
    row = outbox.index("contacts", "c1", {})
    (tmp_path / "app.db-relay-1").mkdir()  # where its lock would be
    drained = relays.call("run", "--drain")
    assert (drained.returncode, outbox.state(row)) == (0, "done")
    assert drained.stderr.count("only when its lease ends") == 1
    assert "Traceback" not in drained.stderr


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"OUTBOX_DATABASE_URL": ""}, "no database: set OUTBOX_DATABASE_URL"),
        ({"OUTBOX_DATABASE_URL": "app.db"}, "is no SQLAlchemy URL of a database"),
        ({"OUTBOX_DATABASE_URL": "mysql://u:s3cret@h/d"}, "mysql is not supported"),
        ({"OUTBOX_DATABASE_URL": "postgresql://u:s3cret@127.0.0.1:1/d"}, "cannot be opened"),
        ({"OUTBOX_DATABASE_URL": "sqlite:////nowhere/app.db"}, "does not exist"),
        ({"OUTBOX_ELASTICSEARCH_URL": ""}, "no destination: set OUTBOX_ELASTICSEARCH_URL"),
        ({"OUTBOX_ELASTICSEARCH_URL": "u:s3cret@localhost"}, "must start with http://"),
        ({"OUTBOX_BATCH_ROWS": "s3cret"}, "OUTBOX_BATCH_ROWS"),
    ],
)
def test_bad_setting_is_one_line_without_secrets_and_exit_2(
    relays: Relays, environment: dict[str, str], says: str
) -> None:
    failed = relays.call("run", **environment)
    assert failed.returncode == 2
    assert says in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert "s3cret" not in failed.stderr


@pytest.mark.parametrize("host", ["-contacts", "a..b"], ids=["unknown", "no name"])
def test_drain_to_a_host_that_does_not_exist_ends_at_once(relays: Relays, host: str) -> None:
    failed = relays.call("run", "--drain", OUTBOX_ELASTICSEARCH_URL=f"http://u:s3cret@{host}")
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
    assert f"no host is known as {host}: correct OUTBOX_ELASTICSEARCH_URL" in failed.stderr


def test_missing_migration_is_one_line_and_exit_2(relays: Relays, tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "empty.db").execute("CREATE TABLE t (x)").connection.close()
    failed = relays.call("run", OUTBOX_DATABASE_URL=f"sqlite:///{tmp_path}/empty.db")
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
    assert "run 'outbox-relay migrate'" in failed.stderr


def test_misspelt_variable_is_named_with_the_right_one(relays: Relays) -> None:
    assert "did you mean OUTBOX_BATCH_ROWS?" in relays.call("status", OUTBOX_BATCH_ROW="5").stderr
