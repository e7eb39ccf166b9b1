"""What `when` gets of a row that was read without building its object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import inspect


class ColumnsOfRow:
    """The columns of a row as attributes. All else that a model has comes from the object, built when it is asked for.

    `build` makes that object; None, if the row is not there any more.
    """

    def __init__(self, model: type[Any], columns: Mapping[str, Any], build: Callable[[], Any]) -> None:
        self.__dict__.update(columns)
        self.__model, self.__build = model, build

    @property  # type: ignore[misc]
    def __class__(self) -> type[Any]:
        """For `isinstance`: that of the object, which may be of a class below the model."""
        if inspect(self.__model).polymorphic_on is None:
            return self.__model
        instance = self.__build()
        return self.__model if instance is None else type(instance)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python itself looks for
            raise AttributeError(f"{self.__model.__name__} has no attribute {name!r}")
        instance = self.__build()
        if instance is None:
            raise AttributeError(f"{self.__model.__name__}.{name} cannot be read: its row was deleted meanwhile")
        return getattr(instance, name)
