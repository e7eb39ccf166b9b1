"""An index has further aliases, or its own has a filter: readers have them after a rebuild as before."""

from __future__ import annotations

from typing import Any

import pytest

from outbox.destinations.cluster.destination import ClusterDestination
from tests.support.node import Node

pytestmark = pytest.mark.elasticsearch

FILTER = {"term": {"tenant": "t1"}}


def aliases_of(node: Node, target: str) -> Any:
    return node.request("GET", f"/{target}/_alias")[1][target]["aliases"]


def test_all_aliases_of_an_index_move_as_they_are(destination: ClusterDestination, node: Node) -> None:
    old, other = destination.ensure_index("contacts"), destination.ensure_index("companies")
    aliases = {"contacts": {"filter": FILTER}, "contacts-of-t1": {"filter": FILTER, "search_routing": "t1"}, "all": {}}
    actions = [{"add": {"index": old, "alias": alias, **how}} for alias, how in aliases.items()]
    given = {"actions": [*actions, {"add": {"index": other, "alias": "all"}}]}
    assert node.request("POST", "/_aliases", given)[0] == 200
    before = aliases_of(node, old)
    assert before.keys() == aliases.keys()

    destination.create_index("contacts-000002", {}, {})
    destination.finish_index("contacts-000002", {})
    destination.swap("contacts", old, "contacts-000002")
    assert aliases_of(node, "contacts-000002") == before
    assert aliases_of(node, old) == {}
    assert aliases_of(node, other) == {"all": {}, "companies": {}}
    destination.swap("contacts", "contacts-000002", old)
    assert aliases_of(node, old) == before


def test_aliases_of_an_index_that_gives_its_name_away_stay(destination: ClusterDestination, node: Node) -> None:
    assert node.request("PUT", "/contacts", {"aliases": {"people": {"filter": FILTER}}})[0] == 200
    destination.create_index("contacts-000002", {}, {})
    destination.finish_index("contacts-000002", {})
    destination.swap("contacts", "contacts", "contacts-000002", adopt=True)
    assert aliases_of(node, "contacts-000002") == {"contacts": {}, "people": {"filter": FILTER}}
