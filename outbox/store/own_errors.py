"""Errors of relays and commands as SQLAlchemy makes them, whatever an application makes of those of its engines.

Listens to the engines of the process once it is imported: listeners are asked in the order in which they came, so this
has to be before the modules of the application.
"""

from __future__ import annotations

from typing import Final
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, ExceptionContext, event
from sqlalchemy.engine import Dialect as Driver

from outbox.store.dialect import Dialect

_OWN: Final[WeakKeyDictionary[Driver, Dialect]] = WeakKeyDictionary()


def keep(engine: Engine, dialect: Dialect) -> None:
    """Have an engine's errors pass by what listens to those of all engines.

    A module of the application that is imported for its models may hang there what raises others instead, say the
    driver's own: a relay would take those for the fault of a row, or end.
    """
    _OWN[engine.dialect] = dialect


@event.listens_for(Engine, "handle_error")
def _raise_as_it_is(context: ExceptionContext) -> None:
    """Where this raises, no other listener is asked."""
    if (dialect := _OWN.get(context.dialect)) is not None and context.sqlalchemy_exception is not None:
        dialect.on_error(context)
        raise context.sqlalchemy_exception
