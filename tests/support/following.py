"""An index that follows the rows of a database, as a relay makes it, and what a reindex would make of the database."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Engine

from outbox import EntityRegistry
from outbox.entities import loader
from outbox.entities.loader import Part
from outbox.entities.maker import LoadFailed
from outbox.relay.load import from_database
from tests.support.watching import Rows

Index = dict[tuple[str, str], Any]


class Following:
    """`index` holds documents by index name and `_id`; of one that cannot be made, why."""

    def __init__(self, engine: Engine, registry: EntityRegistry) -> None:
        self._engine, self._registry = engine, registry
        self._rows = Rows(engine)
        self.index: Index = {}

    def follow(self) -> Index:
        """Deliver what has come in."""
        events = self._rows.events()
        with self._engine.connect() as connection:
            found = from_database(connection, self._registry, events)
        for event in events:
            place, document = (event.index_name, event.document_id), found[event.id]
            if document is None:
                self.index.pop(place, None)
            else:
                self.index[place] = document if isinstance(document, LoadFailed) else json.loads(document)
        return self.index

    def rebuilt(self) -> Index:
        """What the database says of every entity at this moment."""
        made: Index = {}
        with self._engine.connect() as connection:
            for entity in self._registry:
                for row in loader.page(connection, entity, Part(), None, 1_000):
                    if row.document is not None:
                        place = row.place[:2] if row.place else (entity.index, "|".join(row.key))
                        made[place] = json.loads(row.document) if isinstance(row.document, bytes) else row.document
        return made
