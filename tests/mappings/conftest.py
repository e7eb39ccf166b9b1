"""Indexes on each kind of destination, and the command line of an application that registers other mappings by now."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner, Result

from outbox import EntityRegistry
from outbox.cli import main
from tests.support.models import Base, Contact
from tests.support.outbox import Outbox
from tests.support.places import Place

registry = EntityRegistry()


class Application:
    """Its index was made with some mappings, and it registers others now."""

    def __init__(self, outbox: Outbox, place: Place) -> None:
        self.outbox, self.place = outbox, place
        Base.metadata.create_all(outbox.engine)

    def made_with(self, mappings: dict[str, Any], settings: dict[str, Any] | None = None) -> None:
        held = {**mappings, "properties": {"tenantId": {"type": "keyword"}, **mappings.get("properties", {})}}
        target = self.place.destination.ensure_index("contacts", held, settings)
        self.outbox.store().register_index("contacts", target)

    def registers(self, mappings: dict[str, Any], **more: Any) -> EntityRegistry:
        global registry
        registry = EntityRegistry()
        registry.add(Contact, index="contacts", fields=["name"], tenant="tenant", mappings=mappings, **more)
        return registry

    def command(self, *arguments: str, answer: str | None = None) -> Result:
        environment = {
            "OUTBOX_DATABASE_URL": self.outbox.url,
            "OUTBOX_ENTITIES": f"{__name__}:registry",
            **self.place.environment,
        }
        return CliRunner().invoke(main, arguments, input=answer, env=environment)


@pytest.fixture
def app(outbox: Outbox, place: Place) -> Application:
    return Application(outbox, place)
