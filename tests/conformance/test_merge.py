"""Partial updates, sent one by one or folded, against Elasticsearch's own `_update` with the same documents."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outbox.destinations.base import Destination, Operation, OutcomeKind
from outbox.relay import plan
from outbox.store.models import Action, Event
from tests.support.node import Node

pytestmark = [pytest.mark.elasticsearch, pytest.mark.slow]

# Few keys, so that patches meet what is there; one with a dot, which is a name like any other to `_update`.
keys = st.sampled_from(["a", "b", "a.b", "ü"])
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)
objects = st.dictionaries(keys, values, max_size=4)
ids = itertools.count(1)


def test_updates_one_by_one_and_folded_come_to_what_elasticsearch_makes_of_them(
    destination: Destination, node: Node, name: str
) -> None:
    # Elasticsearch must keep what no mapping would take: 1, then "x", then an object under one name.
    target = destination.ensure_index(name, {"enabled": False})
    reference = f"{name}-reference"
    node.request("PUT", f"/{reference}", {"mappings": {"enabled": False}})

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(document=objects, patches=st.lists(objects, min_size=1, max_size=4))
    def compare(document: dict[str, Any], patches: list[dict[str, Any]]) -> None:
        contents = [orjson.dumps(each) for each in (document, *patches)]
        first = next(ids) * 10
        events = [
            Event(first + at, Action.UPDATE if at else Action.INDEX, name, "folded", None, None, 0, 1, 0)
            for at in range(len(contents))
        ]
        versions = [event.id for event in events]
        (fold,) = plan.fold(events, dict(zip(versions, contents, strict=True)), {name: target}, versions[-1])
        one_by_one = [Operation(name, target, "each", versions[0], contents[0])]
        one_by_one += [Operation(name, target, "each", v, None, (c,)) for v, c in zip(versions, contents, strict=True)][
            1:
        ]
        onto_held = [
            Operation(name, target, "onto-held", versions[0], contents[0]),
            Operation(name, target, "onto-held", versions[-1], None, tuple(contents[1:])),
        ]
        for operation in (*one_by_one, *onto_held, fold.operation):
            (outcome,) = destination.apply([operation])
            assert outcome.kind is OutcomeKind.APPLIED, outcome

        path = f"/{reference}/_doc/1"
        assert node.request("PUT", path, contents[0])[0] in (200, 201)
        for content in contents[1:]:
            status, answer = node.request("POST", f"/{reference}/_update/1", b'{"doc":%s}' % content)
            assert status == 200, answer
        expected = node.request("GET", path)[1]["_source"]
        found = destination.read(target, ["each", "onto-held", "folded"])
        assert {each: stored.source for each, stored in found.items()} == {
            "each": expected, "onto-held": expected, "folded": expected
        }  # fmt: skip

    compare()
