"""/metrics as Prometheus reads it, and the rules and the dashboard that are made for it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine

from outbox.admin.alerts import ALERTS
from outbox.cli import main
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.maintenance.pruner import prune
from outbox.store import upkeep
from outbox.store.models import LATENCY_BOUNDS_MS, now_ms
from outbox.store.upkeep import HOUR_MS
from tests.support import LIMIT_S
from tests.support.outbox import Outbox
from tests.support.pages import built
from tests.support.relays import until
from tests.support.serving import TestClient, client_of

HOSTILE = 'a"b\\c\nd{}=,é'

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def client(engine: Engine, search_db: EmbeddedDestination) -> Iterator[TestClient]:
    with client_of(engine, search_db) as made:
        until(lambda: made.get("/health").json()["destination"], "the destination was asked")
        yield made


def scrape(client: TestClient) -> Samples:
    client.post("/api/v1/admin/resume")  # what is shown is as of now, and not of the last second
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation, family.name
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, key
            found[key] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


def everything(outbox: Outbox, search_db: EmbeddedDestination) -> None:
    """An outbox for which each metric is there."""
    for at in range(5):
        outbox.index("contacts", f"c{at}", {"name": "Ada"}, tenant_id="t1")
    outbox.drain(search_db)
    dead = outbox.index("contacts", "c9", {"name": "Ada"})
    outbox.raw("UPDATE outbox_events SET state = 'dead', error_type = 'x', error = 'y' WHERE id = :dead", dead=dead)
    outbox.index("notes", "n1", {})
    outbox.store().register_relay("host", 1, "1.0", now_ms())
    outbox.raw("UPDATE outbox_relays SET lock_waited_ms = 1500, lock_held_ms = 2500, lock_longest_ms = 40")
    outbox.raw("UPDATE outbox_relays SET breakers = :b", b=json.dumps([{"index": HOSTILE, "reason": "x", "since": 1}]))
    outbox.raw(
        "INSERT INTO outbox_verifications (started_at, finished_at, started_by, entities, sample, missing)"
        " VALUES (1, 2, 'x', '[]', 1, 3)"
    )
    outbox.raw(
        "INSERT INTO outbox_reindex_jobs (index_name, old_index, new_index, phase, documents, total)"
        " VALUES ('contacts', 'contacts-000001', 'contacts-000002', 'scan', 7, 10)"
    )


def test_each_metric_says_what_the_tables_say(
    client: TestClient, outbox: Outbox, search_db: EmbeddedDestination
) -> None:
    scrape(client)
    everything(outbox, search_db)
    seen = scrape(client)
    assert value(seen, "outbox_rows", state="fresh") == 1
    assert value(seen, "outbox_rows", state="dead") == 1
    assert value(seen, "outbox_unfinished_rows") == 1
    assert value(seen, "outbox_relays") == 1
    assert value(seen, "outbox_destination_up") == 1
    assert value(seen, "outbox_paused") == 0
    assert value(seen, "outbox_breaker_open", index=HOSTILE) == 1
    assert value(seen, "outbox_breaker_open", index="") == 0
    assert value(seen, "outbox_relay_lock_wait_seconds_total", relay="host:1") == 1.5
    assert value(seen, "outbox_relay_lock_held_seconds_total", relay="host:1") == 2.5
    assert value(seen, "outbox_relay_lock_longest_seconds", relay="host:1") == 0.04
    assert value(seen, "outbox_verification_drift_documents") == 3
    assert value(seen, "outbox_reindex_documents", reindex="1", index="contacts", phase="scan") == 7
    lane = {"index": "contacts", "action": "index"}
    assert value(seen, "outbox_finished_rows_total", **lane, outcome="done") == 5
    assert value(seen, "outbox_delivery_latency_seconds_count", **lane) == 5
    assert {labels[0][1] for name, labels in seen if name == "outbox_alert"} == set(ALERTS)


def test_metric_or_label_without_documentation(
    client: TestClient, outbox: Outbox, search_db: EmbeddedDestination
) -> None:
    scrape(client)
    everything(outbox, search_db)
    scrape(client)
    table = built("reference/metrics.md").split("| metric | type | labels |")[1].split("\n\n")[0]
    documented = {
        name: set(re.findall(r"`(\w+)`", labels))
        for name, labels in re.findall(r"^\| `(outbox_\w+)` \|[^|]*\|([^|]*)\|", table, re.MULTILINE)
    }
    families = {
        family.name + ("_total" if family.type == "counter" else ""): {
            label for sample in family.samples for label in sample.labels if label != "le"
        }
        for family in text_string_to_metric_families(client.get("/metrics").text)
    }
    assert families == documented


def test_buckets_are_cumulative_and_say_what_the_statistics_say(client: TestClient, outbox: Outbox) -> None:
    scrape(client)
    columns = [f"latency_le_{bound}ms" for bound in LATENCY_BOUNDS_MS]
    for tenant, numbers in (("t1", range(1, 13)), ("t2", range(13, 25))):
        outbox.raw(
            "INSERT INTO outbox_stats (minute, index_name, entity, tenant_id, action, done, latency_sum_ms,"
            f" {', '.join(columns)}) VALUES ({now_ms() // 60_000 * 60_000}, :index, '', '{tenant}', 'index', 400, 5000,"
            f" {', '.join(map(str, numbers))})",
            index=HOSTILE,
        )
    seen = scrape(client)
    lane = {"index": HOSTILE, "action": "index"}
    buckets = [
        value(seen, "outbox_delivery_latency_seconds_bucket", **lane, le=str(bound / 1000))
        for bound in LATENCY_BOUNDS_MS
    ]
    single = [12 + 2 * at for at in range(1, 13)]
    assert buckets == [sum(single[: at + 1]) for at in range(12)]
    assert value(seen, "outbox_delivery_latency_seconds_bucket", **lane, le="+Inf") == 800 >= buckets[-1]
    assert value(seen, "outbox_delivery_latency_seconds_count", **lane) == 800
    assert value(seen, "outbox_delivery_latency_seconds_sum", **lane) == 10


def test_counters_only_rise_whatever_becomes_of_rows_statistics_and_relays(
    client: TestClient, outbox: Outbox, search_db: EmbeddedDestination
) -> None:
    store, now = outbox.store(), now_ms()
    before: Samples = {}
    for step in range(8):
        outbox.index_many("contacts", [(f"c{step}-{at}", {"name": "Ada"}) for at in range(step + 1)])
        if step % 2:
            outbox.drain(search_db)  # each time by another relay
        if step == 3:
            assert prune(store, now + HOUR_MS) > 0
        if step == 5:
            while upkeep.compact_stats(store, now):
                pass
            while upkeep.prune_stats(store, now - 24 * HOUR_MS):
                pass
        if step == 6:
            outbox.raw("DELETE FROM outbox_events WHERE state = 'done'")
        seen = scrape(client)
        counters = {
            key: number for key, number in seen.items() if key[0].endswith(("_total", "_bucket", "_sum", "_count"))
        }
        assert all(number >= before.get(key, 0) for key, number in counters.items()), step
        assert set(before) <= set(counters)
        before = counters
    lane = {"index": "contacts", "action": "index"}
    assert value(before, "outbox_finished_rows_total", **lane, outcome="done") == sum(range(1, 9))


# -- what is made for them --------------------------------------------------------------------------------------------


def export(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["monitoring", "export", *arguments])


def exported(directory: Path) -> tuple[Any, Any]:
    ended = export(str(directory))
    assert ended.exit_code == 0
    rules, dashboard = (Path(line) for line in ended.stdout.splitlines())
    return yaml.safe_load(rules.read_text()), json.loads(dashboard.read_text())


def test_rules_and_dashboard_use_metrics_and_labels_that_are_there(
    client: TestClient, outbox: Outbox, search_db: EmbeddedDestination, tmp_path: Path
) -> None:
    rules, dashboard = exported(tmp_path / "monitoring")
    everything(outbox, search_db)
    outbox.raw("UPDATE outbox_stats SET retried = 1, lost_claims = 1")
    known: dict[str, set[str]] = {}
    for name, labels in scrape(client):
        known.setdefault(name, set()).update({label for label, _ in labels} | {"job", "instance"})
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    expressions += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) > 25
    for expression in expressions:
        metrics = re.findall(r"\b(outbox_\w+)(?:\{([^}]*)\})?", expression)
        assert metrics, expression
        for name, given in metrics:
            assert name in known, expression
            assert set(re.findall(r"(\w+)=", given)) <= known[name], expression
        for grouped in re.findall(r"by \(([^)]*)\)", expression):
            assert set(grouped.split(", ")) <= set().union(*(known[name] for name, _ in metrics)), expression


def test_rule_says_what_it_is_and_what_to_do(tmp_path: Path) -> None:
    rules, _ = exported(tmp_path)
    (group,) = rules["groups"]
    assert {rule["alert"] for rule in group["rules"]} >= {
        "OutboxClusterUnreachable", "OutboxNoRelay", "OutboxPausedTooLong", "OutboxQueueDepth", "OutboxCompletion",
        "OutboxFailures", "OutboxLatency", "OutboxDeadRows", "OutboxDrift", "OutboxOldestRow", "OutboxMetricsAbsent",
    }  # fmt: skip
    for rule in group["rules"]:
        assert rule["annotations"]["summary"] and rule["annotations"]["description"], rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
    text = (tmp_path / "outbox-relay.rules.yml").read_text()
    for command in re.findall(r"'(outbox-relay [^']+)'", re.sub(r"\s+", " ", text)):
        words = [word for word in command.split()[1:] if not word.startswith("-")]
        assert CliRunner().invoke(main, [*words, "--help"]).exit_code == 0, command


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_prometheus_itself_takes_rules_and_metrics(
    client: TestClient, outbox: Outbox, search_db: EmbeddedDestination, tmp_path: Path
) -> None:
    exported(tmp_path)
    subprocess.run(["promtool", "check", "rules", tmp_path / "outbox-relay.rules.yml"], check=True, timeout=LIMIT_S)
    everything(outbox, search_db)
    ended = subprocess.run(
        ["promtool", "check", "metrics"],
        input=client.get("/metrics").content,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_file_that_somebody_has_changed_is_not_overwritten(tmp_path: Path) -> None:
    exported(tmp_path)
    changed = tmp_path / "outbox-relay.rules.yml"
    changed.write_text("mine")
    ended = export(str(tmp_path))
    assert ended.exit_code == 2
    assert f"{changed} exists" in ended.stderr and "--force" in ended.stderr
    assert changed.read_text() == "mine"
    assert export(str(tmp_path), "--force").exit_code == 0
    assert changed.read_text() != "mine"


def test_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = export(str(tmp_path / "file" / "below"))
    assert ended.exit_code == 2
    assert str(tmp_path / "file" / "below") in ended.stderr
