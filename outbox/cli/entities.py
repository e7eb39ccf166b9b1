"""The application's registry of entities, as OUTBOX_ENTITIES names it."""

from __future__ import annotations

import sys
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import click

from outbox.entities.registry import EntityRegistry
from outbox.errors import ConfigurationError
from outbox.settings import Settings
from outbox.store.store import Store


def registry_of(loaded: Settings) -> EntityRegistry | None:
    """The registry, if one is set. Raises `ConfigurationError`."""
    if loaded.entities is None:
        return None
    module, _, name = loaded.entities.partition(":")
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does; a console script has the directory of its own instead
    try:
        found = attrgetter(name)(import_module(module))
    except Exception as error:
        raise ConfigurationError(
            f"OUTBOX_ENTITIES={loaded.entities}: {type(error).__name__}: {error}; it is module:name, as one would "
            "import it in the working directory"
        ) from error
    finally:
        sys.path.pop(0)
    if not isinstance(found, EntityRegistry):
        raise ConfigurationError(
            f"OUTBOX_ENTITIES={loaded.entities} is of type {type(found).__name__}, not EntityRegistry"
        )
    return found


def required_registry(loaded: Settings, why: str) -> EntityRegistry:
    """The registry. Raises `ConfigurationError`, with `why` it is needed, if none is set."""
    registry = registry_of(loaded)
    if registry is None:
        raise ConfigurationError(f"{why}: set OUTBOX_ENTITIES, e.g. myapp.search:registry")
    return registry


def warn_of_unregistered(store: Store, registry: EntityRegistry, consequence: str) -> None:
    """Say on standard error which indexes belong to no entity: a command for all entities leaves them out."""
    for name in sorted(store.targets()):
        if not registry.of_index(name):
            click.echo(f"index {name} has no registered entity and {consequence}", err=True)
