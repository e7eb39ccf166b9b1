"""`outbox-relay search`, on both destinations: what a person sees, what a program gets; and an application's own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from outbox import DestinationError, IndexMissing, Search
from outbox.cli import main
from outbox.cli.search import fields_with
from outbox.destinations.base import Destination, Found, Operation
from outbox.destinations.elasticsearch.destination import ElasticsearchDestination
from outbox.destinations.embedded.destination import EmbeddedDestination
from tests.support.node import Node
from tests.support.proxy import FaultProxy, anything, hang
from tests.support.relays import until

PEOPLE = {
    "contact-1": {"name": "Ada Lovelace", "tenantId": "acme", "about": "x " * 100 + "programs of Ada " + "y " * 100},
    "contact-2": {"name": "Ada Byron", "tenantId": "acme-2", "address": {"city": "Adamstown"}},
    "contact-3": {"name": "[red]Grace[/red]\n\x1b[31m Hopper", "tags": ["navy", "compilers"]},
    "e" * 100: {"name": "Émile " + "long " * 50},
    "7": {"name": "Konrad Zuse"},
}


@pytest.fixture(
    params=["embedded", pytest.param("elasticsearch", marks=pytest.mark.elasticsearch)],
)
def filled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An index `contacts`, and the environment that leads to it."""
    destination: Destination
    if request.param == "embedded":
        monkeypatch.setenv("OUTBOX_DESTINATION", "embedded")
        monkeypatch.setenv("OUTBOX_EMBEDDED_PATH", "search.db")
        destination = EmbeddedDestination(tmp_path / "search.db")
    else:
        node: Node = request.getfixturevalue("clean_node")
        monkeypatch.setenv("OUTBOX_ELASTICSEARCH_URL", node.url)
        destination = ElasticsearchDestination([node.url])
    target = destination.ensure_index("contacts")
    documents = ((each, json.dumps(document).encode()) for each, document in PEOPLE.items())
    destination.apply([Operation("contacts", target, each, 1, document) for each, document in documents])
    destination.refresh("contacts")
    yield
    destination.close()


def search(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["search", *arguments])


@pytest.mark.usefixtures("filled")
def test_matches_are_a_table_of_80_columns_with_the_fields_that_hold_the_words() -> None:
    result = search("contacts", "ada", "lovlace")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    _, header, _, *rows, _, last = lines
    assert header.split() == ["score", "id", "found", "in"]
    assert [row.split()[1] for row in rows if row.strip()[0].isdigit()] == ["contact-1", "contact-2"]
    assert "name: Ada Lovelace" in rows[0]
    assert "about: …x x" in rows[1]
    assert "programs of Ada" in rows[1]
    assert any("address.city: Adamstown" in row for row in rows)
    assert last == "2 matches"


@pytest.mark.usefixtures("filled")
def test_column_of_short_ids_has_room_for_its_heading() -> None:
    _, header, _, row, *_ = search("contacts", "zuse").stdout.splitlines()
    assert header.split() == ["score", "id", "found", "in"]
    assert row.split()[1:] == ["7", "name:", "Konrad", "Zuse"]


@pytest.mark.usefixtures("filled")
def test_control_characters_and_markup_of_documents_reach_no_terminal() -> None:
    result = search("contacts", "hopper")
    assert "[red]Grace[/red]\\n\\x1b[31m Hopper" in result.stdout
    assert result.stdout.endswith("1 match\n")


@pytest.mark.usefixtures("filled")
def test_long_ids_and_texts_are_cut() -> None:
    result = search("contacts", "emile")
    assert "name: Émile long" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.usefixtures("filled")
def test_json_is_for_programs() -> None:
    result = search("contacts", "ada", "--tenant", "acme", "--json")
    (hit,) = json.loads(result.stdout)
    assert hit["score"] > 0
    assert (hit["id"], hit["document"]) == ("contact-1", PEOPLE["contact-1"])
    assert json.loads(search("contacts", "nothing", "--json").stdout) == []


@pytest.mark.usefixtures("filled")
def test_limit_and_tenant_narrow_the_search() -> None:
    result = search("contacts", "ada", "--limit", "1")
    assert result.stdout.splitlines()[-1] == "1 match; --limit 10 shows more, if there are any"
    assert "contact-1" not in search("contacts", "ada", "--tenant", "acme-2").stdout
    assert search("contacts", "ada", "--limit", "0").exit_code == 2


@pytest.mark.usefixtures("filled")
def test_no_matches_are_said_and_are_no_failure() -> None:
    result = search("contacts", "zzzzzz")
    assert (result.exit_code, result.stdout) == (0, "no matches\n")


ITS_NAME = "its name is misspelt, or nothing was delivered to it yet"


@pytest.mark.usefixtures("filled")
def test_unknown_index_is_one_line_and_exit_1() -> None:
    result = search("contacs", "ada")
    assert (result.exit_code, result.stderr) == (1, f"error: there is no index contacs: {ITS_NAME}\n")


def test_search_without_a_destination_is_one_line_and_exit_2() -> None:
    result = search("contacts", "ada")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


@pytest.mark.elasticsearch
def test_destination_that_is_away_is_one_line_and_exit_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_ELASTICSEARCH_URL", "http://127.0.0.1:1")
    result = search("contacts", "ada")
    says = "error: index contacts cannot be searched: Connection refused; 'outbox-relay check' says more\n"
    assert (result.exit_code, result.stderr) == (1, says)
    checked = CliRunner().invoke(main, ["check", "--database-url", "sqlite:///app.db"])
    assert "elasticsearch does not answer: Connection refused (http://127.0.0.1:1)\n" in checked.stdout


def test_document_found_by_a_number_shows_its_first_text() -> None:
    assert fields_with({"n": 36, "a": [{"b": "Ada"}], "c": "Grace"}, ["36"]) == [("a.b", "Ada", 0)]
    assert fields_with({"n": 36}, ["36"]) == []


@pytest.mark.usefixtures("filled")
def test_application_searches_where_the_relay_delivers_to() -> None:
    with Search() as search:
        assert [hit.document_id for hit in search("contacts", "ada", tenant="acme")] == ["contact-1"]
        assert [hit.source for hit in search("contacts", "lovlace", limit=1)] == [PEOPLE["contact-1"]]
        with pytest.raises(IndexMissing, match="there is no index deals"):
            search("deals", "ada")


@pytest.mark.elasticsearch
def test_index_whose_shards_are_not_ready_is_called_that(clean_node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_ELASTICSEARCH_URL", clean_node.url)
    nowhere = {"index.routing.allocation.require._name": "nobody", "index.number_of_replicas": 0}
    clean_node.request(
        "PUT", "/contacts-000001?wait_for_active_shards=0", {"settings": nowhere, "aliases": {"contacts": {}}}
    )
    with Search() as search:
        for tenant in (None, "acme"):
            with pytest.raises(DestinationError, match="cannot be searched: none of its shards is ready"):
                search("contacts", "ada", tenant=tenant)
        clean_node.request("PUT", "/contacts-000001/_settings", {"index.routing.allocation.require._name": None})
        until(lambda: search_or_none(search) == Found((), 0), "the index is ready")


def search_or_none(search: Search) -> object:
    try:
        return search("contacts", "ada")
    except DestinationError:
        return None


@pytest.mark.elasticsearch
def test_application_starts_while_the_search_engine_is_away(
    clean_node: Node, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_node.request("PUT", "/contacts")
    monkeypatch.setenv("OUTBOX_ELASTICSEARCH_URL", proxy.url)
    proxy.down()
    with Search(timeout=50) as search:
        with pytest.raises(DestinationError, match="index contacts cannot be searched: Connection refused"):
            search("contacts", "ada")
        proxy.up()
        assert not search("contacts", "ada")
    proxy.on(anything, hang)
    with Search(timeout=1) as search:
        began = time.monotonic()
        with pytest.raises(DestinationError, match="Connection timeout"):
            search("contacts", "ada")
        assert time.monotonic() - began < 18  # not the 20 s of a relay


@pytest.mark.parametrize(("lease", "given"), [("7", {}), (None, {"timeout": 56}), ("7", {"timeout": 600})])
def test_application_searches_whatever_the_lease_of_the_relay_allows(
    lease: str | None, given: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOX_DESTINATION", "embedded")
    monkeypatch.setenv("OUTBOX_EMBEDDED_PATH", "search.db")
    if lease:
        monkeypatch.setenv("OUTBOX_LEASE", lease)
        monkeypatch.setenv("OUTBOX_REQUEST_TIMEOUT", "1")
    with Search(**given) as search, pytest.raises(IndexMissing):  # type: ignore[arg-type]
        search("contacts", "ada")
