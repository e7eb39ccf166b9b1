"""From the embedded destination to Elasticsearch with the commands of the guide, while rows wait and come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reindex.world import SECOND, World, in_a_file
from tests.support.node import Node
from tests.support.outbox import Outbox
from tests.support.pages import EVERYTHING, ROOT, blocks
from tests.support.relays import Relays, until

registry = World.registered(tenancy="prefixed")


@pytest.fixture
def world(outbox: Outbox, tmp_path: Path) -> Iterator[World]:
    """An application whose documents are in a file."""
    with in_a_file(outbox, tmp_path, 50) as made:
        yield made


def finished(outbox: Outbox) -> bool:
    counts = outbox.counts()
    return not counts["pending"] and not counts["claimed"]


def test_move_to_a_cluster_takes_three_commands_and_loses_no_row(world: World, relays: Relays, node: Node) -> None:
    settings, commands, by_hand = blocks(EVERYTHING["docs/how-to/to-a-cluster.md"])
    restart, *rest = [line.partition("#")[0].split() for line in commands.content.splitlines()]
    relays.give(OUTBOX_ENTITIES=f"{__name__}:registry", PYTHONPATH=str(ROOT), OUTBOX_HEARTBEAT_INTERVAL="0.2")
    before = relays.start(**world.place.environment)
    world.save(1, "delivered to the file")
    world.outbox.index("notes", "n1", {"text": "of no entity"})
    until(lambda: finished(world.outbox), "the file has all")
    before.terminate()
    assert before.wait() == 0
    world.save(2, "waits")
    world.delete(3)
    update = world.outbox.update("contacts", "2:t1:4", {"note": "by a program without the registry"})
    note = world.outbox.index("notes", "n2", {"text": "of no entity, and waits"})

    names = [line.partition("=")[0] for line in settings.content.splitlines()]
    assert names == ["OUTBOX_DESTINATION", "OUTBOX_ELASTICSEARCH_URL"]
    relays.give(OUTBOX_DESTINATION="elasticsearch", OUTBOX_ELASTICSEARCH_URL=relays.url)
    assert restart[:3] == ["sudo", "systemctl", "restart"]
    relays.start()
    until(lambda: "index contacts takes no rows" in relays.log(1), "it finds no index there")
    world.save(60, "meanwhile")
    assert [line[:2] for line in rest] == [["outbox-relay", "reindex"], ["outbox-relay", "verify"]]
    rebuilt = relays.call(*rest[0][1:])
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert "index notes has no registered entity" in rebuilt.stderr
    world.save(61, "after")
    until(lambda: world.outbox.counts()["pending"] == 1, "what waited is delivered, but for the note")
    verified = relays.call(*rest[1][1:])
    assert (verified.returncode, "no drift" in verified.stdout) == (0, True), verified.stdout

    assert node.documents("contacts") == world.expected()
    assert world.store.targets()["contacts"] == SECOND
    assert world.outbox.state(update) == "done"
    assert world.outbox.dead() == []
    assert by_hand.content.split('"')[1].endswith("/notes-000001")
    node.request("PUT", "/notes-000001", json.loads(by_hand.content.split("'")[1]))
    until(lambda: world.outbox.state(note) == "done", "its rows are delivered too")
    assert relays.call("check").returncode == 0
