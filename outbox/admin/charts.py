"""Two small charts as SVG geometry; the template draws them, so nothing needs a script or a style of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

WIDTH: Final = 720
HEIGHT: Final = 120


@dataclass(frozen=True, slots=True)
class Line:
    """`paths`: one for each stretch without a gap. `most`: the value at the top."""

    paths: list[str]
    most: int


@dataclass(frozen=True, slots=True)
class Bar:
    """Two parts, one upon the other; y and heights in pixels from the top."""

    x: float
    width: float
    lower: tuple[float, float]
    upper: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Bars:
    bars: list[Bar]
    most: int


def line(values: Sequence[int | None]) -> Line:
    """Of values at even distances; None is a gap, not 0."""
    most = max((value for value in values if value is not None), default=0)
    step = WIDTH / max(1, len(values) - 1)
    paths = []
    for known, stretch in groupby(enumerate(values), key=lambda each: each[1] is not None):
        if not known:
            continue
        points = [f"{at * step:.1f},{HEIGHT - _height(value or 0, most):.1f}" for at, value in stretch]
        last = points[-1].split(",")
        if len(points) == 1:  # a stretch of one would be invisible
            points.append(f"{float(last[0]) + 2:.1f},{last[1]}")
        paths.append("M" + " L".join(points))
    return Line(paths, most)


def bars(values: Sequence[tuple[int, int]]) -> Bars:
    """Of pairs: the first from the bottom up, the second upon it."""
    most = max((first + second for first, second in values), default=0)
    step = WIDTH / max(1, len(values))
    drawn = []
    for at, (first, second) in enumerate(values):
        if not first + second:
            continue
        low, high = _height(first, most), _height(second, most)
        # One that failed among thousands must be seen.
        high = max(high, 2.0) if second else 0.0
        drawn.append(Bar(at * step, max(1.0, step - 1), (HEIGHT - low, low), (HEIGHT - low - high, high)))
    return Bars(drawn, most)


def spark(values: Sequence[int]) -> Bars:
    """Bars of one part each, for a chart as small as a word."""
    return bars([(value, 0) for value in values])


def _height(value: int, most: int) -> float:
    return 0.0 if not most else value / most * (HEIGHT - 4)
