"""Which models are documents, and how a document is made of their rows."""

from outbox.entities.entity import Dependency, DerivedMappings, Entity
from outbox.entities.registry import EntityRegistry

__all__ = ["Dependency", "DerivedMappings", "Entity", "EntityRegistry"]
