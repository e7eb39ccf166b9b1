"""An index has further aliases, or its own has a filter: readers have them after a rebuild as before."""

from __future__ import annotations

import pytest

from outbox.destinations.elasticsearch.destination import ElasticsearchDestination

pytestmark = pytest.mark.elasticsearch

FILTER = {"term": {"tenant": "t1"}}


def test_all_aliases_of_an_index_move_as_they_are(destination: ElasticsearchDestination) -> None:
    old, other = destination.ensure_index("contacts"), destination.ensure_index("companies")
    client = destination.client()
    aliases = {"contacts": {"filter": FILTER}, "contacts-of-t1": {"filter": FILTER, "search_routing": "t1"}, "all": {}}
    actions = [{"add": {"index": old, "alias": alias, **given}} for alias, given in aliases.items()]
    client.indices.update_aliases(actions=[*actions, {"add": {"index": other, "alias": "all"}}])
    before = client.indices.get_alias(index=old)[old]["aliases"]
    assert before.keys() == aliases.keys()

    destination.create_index("contacts-000002", {}, {})
    destination.finish_index("contacts-000002", {})
    destination.swap("contacts", old, "contacts-000002")
    assert client.indices.get_alias(index="contacts-000002")["contacts-000002"]["aliases"] == before
    assert client.indices.get_alias(index=old)[old]["aliases"] == {}
    assert set(client.indices.get_alias(name="all")) == {other, "contacts-000002"}
    destination.swap("contacts", "contacts-000002", old)
    assert client.indices.get_alias(index=old)[old]["aliases"] == before


def test_aliases_of_an_index_that_gives_its_name_away_stay(destination: ElasticsearchDestination) -> None:
    client = destination.client()
    client.indices.create(index="contacts", aliases={"people": {"filter": FILTER}})
    destination.create_index("contacts-000002", {}, {})
    destination.finish_index("contacts-000002", {})
    destination.swap("contacts", "contacts", "contacts-000002", adopt=True)
    found = client.indices.get_alias(index="contacts-000002")["contacts-000002"]["aliases"]
    assert found == {"contacts": {}, "people": {"filter": FILTER}}
