"""Templates of the cluster give new indexes settings and aliases: a rebuilt index has them when it is filled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from outbox.destinations.cluster.destination import ClusterDestination
from tests.support.node import Node
from tests.support.proxy import FaultProxy, Request, reply

pytestmark = pytest.mark.elasticsearch

SETTINGS = {"number_of_replicas": 2, "refresh_interval": "30s"}


@pytest.fixture
def template(node: Node) -> Iterator[None]:
    given = {"settings": {"index": SETTINGS}, "aliases": {"everything": {}}}
    body = {"index_patterns": ["contacts-*"], "priority": 500, "template": given}
    assert node.request("PUT", "/_index_template/of-the-company", body)[0] == 200
    yield
    node.request("DELETE", "/_index_template/of-the-company")


def made(node: Node, target: str) -> tuple[dict[str, Any], set[str]]:
    index = node.request("GET", f"/{target}")[1][target]
    settings = index["settings"]["index"]
    return {name: settings.get(name) for name in SETTINGS}, set(index["aliases"])


@pytest.mark.usefixtures("template")
def test_readers_do_not_get_an_index_that_is_being_filled(destination: ClusterDestination, node: Node) -> None:
    old = destination.ensure_index("contacts")
    destination.create_index("contacts-000002", {}, {})
    assert made(node, "contacts-000002") == ({"number_of_replicas": "0", "refresh_interval": "-1"}, set())
    destination.finish_index("contacts-000002", {"refresh_interval": "5s"})
    destination.swap("contacts", old, "contacts-000002")
    of_template = {"number_of_replicas": "2", "refresh_interval": "5s"}
    assert made(node, "contacts-000002") == (of_template, {"contacts", "everything"})


@pytest.mark.usefixtures("template")
def test_lost_index_has_all_that_a_template_gives_when_it_is_rebuilt(
    destination: ClusterDestination, node: Node
) -> None:
    destination.create_index("contacts-000001", {}, {})
    destination.finish_index("contacts-000001", {})
    destination.swap("contacts", None, "contacts-000001")
    of_template = {"number_of_replicas": "2", "refresh_interval": "30s"}
    assert made(node, "contacts-000001") == (of_template, {"contacts", "everything"})


@pytest.mark.usefixtures("template")
def test_user_who_may_not_see_templates_gets_the_default(
    destination: ClusterDestination, node: Node, proxy: FaultProxy
) -> None:
    def about_templates(request: Request) -> bool:
        return request.path.startswith("/_index_template")

    proxy.on(about_templates, reply(403, b'{"error":{"type":"security_exception"},"status":403}'))
    destination.create_index("contacts-000001", {}, {})
    destination.finish_index("contacts-000001", {})
    assert made(node, "contacts-000001")[0] == {"number_of_replicas": "1", "refresh_interval": None}
