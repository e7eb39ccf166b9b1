"""The files of the guides at work: modules whose databases have all tables, and what delivers from them."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from outbox import schema
from outbox.testing import OutboxTester


def with_tables(name: str) -> ModuleType:
    """A module of models, whose database has all tables."""
    models = importlib.import_module(name)
    getattr(models, "Base", None) and models.Base.metadata.create_all(models.engine)
    schema.upgrade(models.engine)
    return models


@contextmanager
def delivering(models: ModuleType) -> Iterator[OutboxTester]:
    with OutboxTester(models.engine, models.registry) as made:
        yield made


def client_of(app: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the test client's own dependencies
        from fastapi.testclient import TestClient

        return TestClient(app)
