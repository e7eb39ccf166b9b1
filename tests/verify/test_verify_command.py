"""The command and the schedule of verification, and what is remembered of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from loguru import logger

from outbox import EntityRegistry
from outbox.cli import main
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.errors import DestinationError
from outbox.maintenance.scheduler import Maintenance
from outbox.store import audit
from outbox.store.store import Store
from outbox.verify import Verification
from tests.support.models import Contact
from tests.support.outbox import Outbox, settings
from tests.support.places import EmbeddedPlace
from tests.verify.world import Application, document, present

REGISTRY = EntityRegistry()  # for commands
REGISTRY.add(Contact, index="contacts", fields=["name", "phone"], tenant="tenant", tenancy="prefixed", when=present)

Call = Callable[..., Result]


@pytest.fixture
def filed(outbox: Outbox, tmp_path: Path) -> Iterator[Application]:
    """The same ten contacts, in a file of the embedded destination."""
    place = EmbeddedPlace(tmp_path / "search.db")
    made = Application(outbox, place)
    made.save(*(Contact(id=number, name=f"Ada {number}", phone=str(number)) for number in range(1, 11)))
    made.deliver()
    yield made
    place.destination.close()


@pytest.fixture
def call(filed: Application, tmp_path: Path) -> Call:
    def run(*arguments: str, **environment: str | None) -> Result:
        given = {
            "OUTBOX_DATABASE_URL": filed.outbox.url,
            "OUTBOX_DESTINATION": "embedded",
            "OUTBOX_EMBEDDED_PATH": str(tmp_path / "search.db"),
            "OUTBOX_ENTITIES": f"{__name__}:REGISTRY",
        }
        return CliRunner().invoke(main, arguments, env=given | environment)

    return run


def test_audit_says_of_which_sample_a_verification_was(filed: Application, call: Call) -> None:
    for words in ((), ("--sample", "0.7%"), ("--sample", "30%", "--entity", "contacts")):
        assert call("verify", *words).exit_code == 0
    assert [each["about"] for each in audit.newest(filed.outbox.store(), 3)] == [
        "entity=contacts sample=30.0%", "sample=0.7%", "all"
    ]  # fmt: skip


def test_command_says_what_is_wrong_and_exits_1_or_that_nothing_is_and_exits_0(filed: Application, call: Call) -> None:
    clean = call("verify")
    assert (clean.exit_code, "10 documents of the database and 10 of the index" in clean.stdout) == (0, True)
    assert "no drift" in clean.stdout
    filed.place.tamper("contacts", "2:t1:4", document(4, name="Eve"))
    filed.place.tamper("contacts", "no\nline of its own", {})
    found = call("verify")
    assert found.exit_code == 1
    assert "different  contacts/2:t1:4  tenant t1  differs in name" in found.stdout.splitlines()
    assert r"extra      contacts/no\nline of its own" in found.stdout.splitlines()
    assert "1 different, 1 extra" in found.stdout
    assert "verify --repair" in found.stdout
    repaired = call("verify", "--repair")
    assert (repaired.exit_code, "2 rows are written" in repaired.stdout) == (1, True)
    filed.deliver()
    assert call("verify").exit_code == 0
    filed.save(Contact(id=5, name="Grace"))
    moving = call("verify")
    assert (moving.exit_code, "no drift in what could be judged" in moving.stdout) == (0, True)
    assert "1 not judged" in moving.stdout


def test_index_that_is_of_no_entity_does_not_pass_for_compared(filed: Application, call: Call) -> None:
    filed.outbox.index("letters", "1", {})
    filed.deliver()
    says = "index letters has no registered entity and is not compared"
    result = call("verify")
    assert (result.exit_code, result.stderr.splitlines()) == (0, [says])
    assert says not in call("verify", "--entity", "contacts").stderr


def test_command_prints_a_line_of_json_for_each_document_and_one_of_totals(filed: Application, call: Call) -> None:
    filed.place.tamper("contacts", "2:t1:4", None)
    result = call("verify", "--json", "--tenant", "t1", "--entity", "contacts")
    *drifts, totals = map(json.loads, result.stdout.splitlines())
    (drift,) = drifts
    assert {name: drift[name] for name in ("kind", "entity", "index", "id", "tenant")} == {
        "kind": "missing", "entity": "contacts", "index": "contacts", "id": "2:t1:4", "tenant": "t1"
    }  # fmt: skip
    assert (totals["kind"], totals["documents"], totals["drift"], totals["missing"]) == ("totals", 10, 1, 1)
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["--entity", "contact"], {}, "did you mean 'contacts'"),
        (["--sample", "0"], {}, "between 0.1% and 100%"),
        (["--sample", "half"], {}, "no percentage"),
        ([], {"OUTBOX_ENTITIES": None}, "set OUTBOX_ENTITIES"),
        ([], {"OUTBOX_VERIFY_SCHEDULE": "at noon"}, "OUTBOX_VERIFY_SCHEDULE"),
    ],
)
@pytest.mark.usefixtures("filed")
def test_wrong_usage_exits_2(call: Call, arguments: list[str], environment: dict[str, str | None], says: str) -> None:
    result = call("verify", *arguments, **environment)
    assert (result.exit_code, says in result.stderr) == (2, True)


def test_status_shows_the_last_verification_and_why_one_did_not_come_to_its_end(
    filed: Application, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert json.loads(call("status", "--json").stdout)["verification"] is None
    filed.place.tamper("contacts", "2:t1:4", None)
    call("verify")
    facts = json.loads(call("status", "--json").stdout)["verification"]
    assert {name: facts[name] for name in ("entities", "documents", "drift", "missing", "sample", "error")} == {
        "entities": ["contacts"], "documents": 10, "drift": 1, "missing": 1, "sample": 1.0, "error": None
    }  # fmt: skip
    assert "DRIFT in contacts at " in call("status").stdout
    call("verify", "--repair")
    filed.deliver()
    assert "1 row written to repair it" in call("status").stdout
    call("verify", "--tenant", "t1")
    assert "verified contacts of tenant t1 at " in call("status").stdout

    def away(*_: Any, **__: Any) -> Any:
        raise DestinationError("it is away")

    monkeypatch.setattr(EmbeddedDestination, "pages", away)
    assert call("verify").exit_code == 1
    assert "NOT VERIFIED: contacts" in (text := call("status").stdout)
    assert "it is away" in text


def test_only_the_newest_hundred_verifications_are_kept(filed: Application) -> None:
    for _ in range(105):
        list(filed.verification(entities=["contacts"]).recorded("me"))
    with filed.outbox.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM outbox_verifications").scalar_one() == 100


def scheduled(app: Application, relay: int, **options: Any) -> Maintenance:
    """A relay's jobs, called by hand."""

    def verification(store: Store) -> Verification:
        return Verification(store, app.destination, app.registry, patience=0, **options)

    return Maintenance(app.outbox.engine, relay, settings(verify_schedule="0 3 * * *"), list, verification)


def test_scheduled_verification_is_done_by_one_of_the_relays_and_says_what_is_wrong(
    filed: Application, call: Call
) -> None:
    lines: list[str] = []
    logger.add(lines.append, format="{level} {message}")
    filed.place.tamper("contacts", "2:t1:4", None)
    for relay in (1, 2, 3):
        scheduled(filed, relay).verify()
    assert [line.strip() for line in lines] == [
        "ERROR a sample of the documents differs from the database: 1 missing; see 'outbox-relay verify'"
    ]
    assert json.loads(call("status", "--json").stdout)["verification"]["by"] == "relay 1"
    filed.outbox.raw("UPDATE outbox_verifications SET started_at = started_at - 60000")  # a minute later
    scheduled(filed, 2).verify()
    assert json.loads(call("status", "--json").stdout)["verification"]["by"] == "relay 2"


def test_scheduled_verification_stands_on_a_thread_of_its_own_at_its_hours(filed: Application) -> None:
    maintenance = scheduled(filed, 1)
    (job,) = [each for each in maintenance._scheduler.get_jobs() if each.id == "verify"]
    assert (job.executor, str(job.trigger)) == (
        "verify",
        "or[cron[month='*', day='*', day_of_week='*', hour='3', minute='0']]",
    )


def test_relay_that_stops_gives_a_verification_up(filed: Application, call: Call) -> None:
    maintenance = scheduled(filed, 1, page=1)
    maintenance.stop()
    maintenance.verify()
    facts = json.loads(call("status", "--json").stdout)["verification"]
    assert (facts["error"], facts["documents"]) == ("stopped before its end", 1)


def test_schedule_without_entities_is_refused_at_the_start(call: Call) -> None:
    result = call("run", "--drain", OUTBOX_ENTITIES=None, OUTBOX_VERIFY_SCHEDULE="0 3 * * *")
    assert (result.exit_code, "set OUTBOX_ENTITIES" in result.stderr) == (2, True)
