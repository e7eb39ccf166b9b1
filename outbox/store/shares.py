"""Pure: how the rows of a claim share its bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Lane = tuple[str, str | None]
"""Index and tenant."""


class Shares:
    """An even share of `most` bytes for each lane, and what others leave of theirs.

    `lanes` and `sizes`: of the rows that are due, one each. `of_index`: indexes that take less. What is large of one
    lane, written earlier, keeps nothing small of another waiting.
    """

    def __init__(self, lanes: Sequence[Lane], sizes: Sequence[int], most: int, of_index: Mapping[str, int]) -> None:
        self._lanes, self._sizes = lanes, sizes
        self.limited = bool(of_index) or sum(sizes) > most
        self._left: dict[Lane, int] = {}
        self._of_index = dict(of_index)
        for lane, size in zip(lanes, sizes, strict=True) if self.limited else ():
            self._left[lane] = self._left.get(lane, 0) + size
        for at, (lane, size) in enumerate(sorted(self._left.items(), key=lambda each: each[1])):
            self._left[lane] = min(size, most // (len(self._left) - at))
            most -= self._left[lane]

    def take(self, at: int, *, first: bool) -> bool:
        """Whether there is room for the row in this place; for the `first` there is. Once there is none, the lane has
        had its share."""
        if not self.limited:
            return True
        lane, size = self._lanes[at], self._sizes[at]
        self._left[lane] -= size
        fits = self._left[lane] >= 0
        if lane[0] in self._of_index:
            self._of_index[lane[0]] -= size
            fits = fits and self._of_index[lane[0]] >= 0
        return first or fits
