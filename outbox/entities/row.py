"""What `when` gets of a row that was read without building its object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class ColumnsOfRow:
    """The columns of a row as attributes. All else that a model has comes from the object, built when it is asked for.

    `build` makes that object; None, if the row is not there any more.
    """

    def __init__(self, model: type[Any], columns: Mapping[str, Any], build: Callable[[], Any]) -> None:
        self.__dict__.update(columns)
        self.__model, self.__build = model, build

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python itself looks for
            raise AttributeError(f"{self.__model.__name__} has no attribute {name!r}")
        instance = self.__build()
        if instance is None:
            raise AttributeError(f"{self.__model.__name__}.{name} cannot be read: its row was deleted meanwhile")
        return getattr(instance, name)
