"""What a row of the table of mapper constructs is: models, a registration, and every way to change their rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from outbox import EntityRegistry

YES = "yes"


@dataclass(frozen=True)
class Made:
    """Models and what is registered of them; `start` adds rows. The last three are changes, one at a time."""

    base: Any
    registry: EntityRegistry
    start: Callable[[Session], Any]
    changes: Sequence[Callable[[Session], Any]] = ()
    statements: Sequence[Any] = ()
    sql: Sequence[str] = ()


@dataclass(frozen=True)
class Construct:
    """One row of the table. `refused`: the words of the registration that refuses it."""

    name: str
    make: Callable[[], Made]
    sessions: str = YES
    bulk: str = YES
    triggers: str = YES
    remark: str = ""
    refused: str | None = None


@dataclass
class Constructs:
    """A list that fills itself, in the order of the functions."""

    found: list[Construct] = field(default_factory=list)

    def add(self, name: str, **says: Any) -> Callable[[Callable[[], Made]], Callable[[], Made]]:
        def added(make: Callable[[], Made]) -> Callable[[], Made]:
            self.found.append(Construct(name, make, **says))
            return make

        return added


def registered(model: type[Any], **options: Any) -> EntityRegistry:
    """A registry of one entity, in an index of its name."""
    made = EntityRegistry()
    made.add(model, **{"name": "it", "index": "it"} | options)
    return made
