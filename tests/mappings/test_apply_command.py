"""`outbox-relay mappings apply`, and what `check` says of an index that is not as registered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outbox import check
from outbox.destinations.base import IndexDefinition
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.errors import DestinationError
from outbox.reindex import reindex
from tests.mappings.conftest import Application

BEFORE: dict[str, Any] = {"dynamic": "strict", "properties": {"name": {"type": "text"}, "code": {"type": "text"}}}
KEYWORD = {"type": "keyword"}
ADDED: dict[str, Any] = {
    "dynamic": "strict",
    "properties": {
        "name": {"type": "text", "fields": {"keyword": KEYWORD}},
        "code": {"type": "text"},
        "account": {"properties": {"name": KEYWORD}},
    },
}
OTHER_TYPE: dict[str, Any] = {"dynamic": "strict", "properties": {"name": {"type": "text"}, "code": KEYWORD}}


def findings(app: Application, mappings: dict[str, Any], **more: Any) -> list[check.Finding]:
    return check.mappings(app.outbox.engine, app.place.destination, app.registers(mappings, **more))


def test_index_that_is_as_registered_is_none_of_checks_business(app: Application) -> None:
    app.made_with(BEFORE)
    assert findings(app, BEFORE) == []
    result = app.command("mappings", "apply")
    assert (result.exit_code, result.stdout) == (0, "1 index is as registered\n")
    assert json.loads(app.command("mappings", "apply", "--json").stdout)[0]["differences"] == []


def test_check_says_what_differs_and_the_command_that_adds_it(app: Application) -> None:
    app.made_with(BEFORE)
    (found,) = findings(app, ADDED)
    assert (found.name, found.level) == ("index contacts", "fail")  # it is strict: documents with the field are refused
    assert found.found == "contacts-000001 is not as registered: name.keyword (keyword) is missing, and 1 more"
    assert found.remedy == "run 'outbox-relay mappings apply'"
    (found,) = findings(app, {**BEFORE, "dynamic": False})
    assert (found.level, "dynamic is strict, registered as false" in found.found) == ("warn", True)
    (found,) = findings(app, OTHER_TYPE)
    assert (found.level, found.remedy) == ("warn", "run 'outbox-relay reindex --entity contacts'")
    assert found.found.endswith("code is text, registered as keyword")
    assert "index contacts: contacts-000001 is not as registered" in app.command("check").stdout


def test_what_can_be_added_is_after_a_question(app: Application) -> None:
    app.made_with(BEFORE)
    registry = app.registers(ADDED)
    result = app.command("mappings", "apply", answer="n\n")
    assert result.exit_code == 1
    assert findings(app, ADDED)
    assert max(map(len, result.stdout.splitlines())) <= 80
    result = app.command("mappings", "apply", "--yes")
    assert (result.exit_code, "2 of 2 added" in result.stdout) == (0, True)
    assert "→ outbox-relay reindex --entity contacts --in-place" in result.stdout
    assert findings(app, ADDED) == []
    mappings, _ = registry.index_options("contacts") or ({}, {})
    held = app.place.destination.definition("contacts-000001", mappings).mappings["properties"]
    assert held["account"]["properties"]["name"]["type"] == "keyword"


def test_what_takes_a_rebuild_is_left_and_the_exit_code_says_so(app: Application) -> None:
    app.made_with(BEFORE)
    both = {**ADDED, "properties": {**ADDED["properties"], "code": KEYWORD}}
    app.registers(both)
    dry = app.command("mappings", "apply", "--dry-run")
    assert (dry.exit_code, "reindex" in dry.stdout) == (1, True)
    assert len(findings(app, both)[0].remedy.split(", then ")) == 2
    result = app.command("mappings", "apply", "--yes")
    assert (result.exit_code, "2 of 2 added" in result.stdout) == (1, True)
    assert "contacts takes a rebuild  → outbox-relay reindex --entity contacts" in result.stderr
    shown = app.command("mappings", "apply", "--yes", "--json")
    (index,) = json.loads(shown.stdout)
    assert shown.exit_code == 1
    assert index["differences"] == [
        {
            "what": "code", "parameter": None, "registered": "keyword", "index_has": "text",
            "remedy": "reindex", "applied": False, "error": None,
        }
    ]  # fmt: skip
    assert app.command("reindex", "--entity", "contacts").exit_code == 0
    assert app.command("mappings", "apply").exit_code == 0


def test_dry_run_of_what_can_be_added_ends_well_and_adds_nothing(app: Application) -> None:
    app.made_with(BEFORE)
    app.registers(ADDED)
    result = app.command("mappings", "apply", "--dry-run", "--json")
    (index,) = json.loads(result.stdout)
    assert result.exit_code == 0
    assert {(each["what"], each["remedy"], each["applied"]) for each in index["differences"]} == {
        ("name.keyword", "apply", False),
        ("account.name", "apply", False),
    }
    assert app.command("mappings", "apply", "--dry-run").exit_code == 0
    assert findings(app, ADDED)


def test_fields_that_documents_brought_are_no_difference(app: Application) -> None:
    app.made_with({"properties": {"name": {"type": "text"}}})
    app.outbox.index("contacts", "1", {"name": "Ada", "tenantId": "t1", "age": 36, "tags": {"a": "x"}})
    app.outbox.drain(app.place.destination)
    assert findings(app, {"properties": {"name": {"type": "text"}}}) == []


def test_index_that_a_reindex_makes_anew_is_left_to_it(app: Application) -> None:
    app.made_with(BEFORE)
    registry = app.registers(OTHER_TYPE)
    steps = reindex(app.outbox.store(), app.place.destination, registry, entities=["contacts"])
    while next(steps).phase != "sweep":
        pass
    assert check.mappings(app.outbox.engine, app.place.destination, registry) == []
    result = app.command("mappings", "apply", "--yes")
    assert result.exit_code == 1
    assert "index contacts is not compared: reindex 1 makes it anew" in result.stderr
    for _ in steps:
        pass
    assert app.command("mappings", "apply").exit_code == 0


def test_missing_index_and_one_that_is_not_made_yet(app: Application) -> None:
    app.registers(BEFORE)
    assert (result := app.command("mappings", "apply")).exit_code == 0
    assert "no index so far" in result.stdout
    app.made_with(BEFORE)
    app.place.drop("contacts")
    assert check.mappings(app.outbox.engine, app.place.destination, app.registers(BEFORE)) == []
    result = app.command("mappings", "apply", "--yes")
    assert result.exit_code == 1
    assert "contacts-000001 is missing, or readers get another: see 'outbox-relay check'" in result.stderr


def test_entity_that_is_not_registered_is_wrong_usage(app: Application) -> None:
    app.registers(BEFORE)
    for command in ("apply", "show"):
        result = app.command("mappings", command, "--entity", "contcats")
        assert (result.exit_code, "did you mean 'contacts'?" in result.stderr) == (2, True)


def test_show_prints_what_is_registered_and_asks_nobody(app: Application) -> None:
    app.registers(ADDED, settings={"number_of_replicas": 0})
    app.place.destination.close()
    result = app.command("mappings", "show")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert lines[0] == ["index", "contacts", "of", "contacts"]
    for line in (
        ["dynamic", "strict"],
        ["name.keyword", "keyword"],
        ["account.name", "keyword"],
        ["tenantId", "keyword"],
    ):
        assert line in lines
    assert ["setting", "number_of_replicas", "0"] in lines
    assert max(map(len, result.stdout.splitlines())) <= 80
    shown = json.loads(app.command("mappings", "show", "--json").stdout)["contacts"]
    assert shown["entities"] == ["contacts"]
    assert shown["mappings"]["properties"]["account"] == ADDED["properties"]["account"]
    assert shown["settings"] == {"number_of_replicas": 0}


def test_mappings_that_cannot_be_read_are_said_not_to_be_compared(app: Application, tmp_path: Path) -> None:
    class Refusing(EmbeddedDestination):
        def definition(self, target: str, mappings: Mapping[str, Any]) -> IndexDefinition:  # noqa: ARG002
            raise DestinationError(f"mappings of index {target} cannot be read: HTTP 403")

    refusing = Refusing(tmp_path / "refusing.db")
    refusing.ensure_index("contacts")
    app.outbox.store().register_index("contacts", "contacts-000001")
    (found,) = check.mappings(app.outbox.engine, refusing, app.registers(BEFORE))
    assert (found.name, found.level) == ("mappings", "warn")
    assert found.found == "not compared: mappings of index contacts-000001 cannot be read: HTTP 403"
    refusing.close()
