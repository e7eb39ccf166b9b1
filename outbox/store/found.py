"""What a statement has found, as the driver gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Found(list[tuple[Any, ...]]):
    """All rows of a SELECT or RETURNING. Its methods are called as those of SQLAlchemy's result, which takes longer to
    make for a row or two than the database takes to find them.

    `columns`: as the driver describes them, each by its name first. `rowcount`: how many rows a statement has changed.
    """

    __slots__ = ("columns", "rowcount")

    def __init__(self, rows: Sequence[tuple[Any, ...]], columns: Sequence[tuple[Any, ...]], rowcount: int) -> None:
        super().__init__(rows)
        self.columns, self.rowcount = columns, rowcount

    def one_or_none(self) -> tuple[Any, ...] | None:
        """Raises `ValueError` for several."""
        if not self:
            return None
        (row,) = self
        return row

    def one(self) -> tuple[Any, ...]:
        """Raises `ValueError` for none or several."""
        (row,) = self
        return row

    def scalar_one(self) -> Any:
        """The first column of the one row. Raises `ValueError` for none or several."""
        return self.one()[0]

    def scalar_one_or_none(self) -> Any:
        """None for no row. Raises `ValueError` for several."""
        row = self.one_or_none()
        return None if row is None else row[0]

    def mappings(self) -> list[dict[str, Any]]:
        """Each row by the names of its columns."""
        names = [column[0] for column in self.columns]
        return [dict(zip(names, row, strict=True)) for row in self]
