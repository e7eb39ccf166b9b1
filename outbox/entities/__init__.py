"""Which models are documents, and how a document is made of their rows."""

from outbox.entities.registry import Dependency, Entity, EntityRegistry

__all__ = ["Dependency", "Entity", "EntityRegistry"]
