"""What a physical index was made with, and what is added to it. Every function raises `DestinationError`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from outbox.destinations.base import IndexDefinition
from outbox.destinations.cluster.failures import failing_as
from outbox.destinations.cluster.wire import Cluster, path_to
from outbox.destinations.differences import flat_settings, left_open
from outbox.errors import DestinationError, shortened

_MOST_IN_A_PATH: Final = 3_000
"""Characters. A cluster reads 4,096 of a request's first line."""


def read(cluster: Cluster, target: str, mappings: Mapping[str, Any]) -> IndexDefinition:
    """Mappings and settings of an index, with defaults of the fields that `mappings` says more of than the answer."""
    with failing_as(f"mappings of index {target} cannot be read"):
        held = _of(target, cluster.request("GET", path_to(target, "_mapping")).body).get("mappings", {})
        found = cluster.request("GET", path_to(target, "_settings"), flat_settings="true", include_defaults="true")
        of_index = _of(target, found.body)
        defaults: dict[str, Mapping[str, Any]] = {}
        for some in _portions(left_open(mappings, held)):
            path = path_to(target, "_mapping", "field", ",".join(some))
            answer = cluster.request("GET", path, include_defaults="true").body
            for name, said in _of(target, answer).get("mappings", {}).items():
                defaults[name] = next(iter(said.get("mapping", {}).values()), {})
    return IndexDefinition(held, defaults, {**of_index.get("defaults", {}), **of_index.get("settings", {})})


def amend(cluster: Cluster, target: str, mappings: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Add to the mappings, then to the settings."""
    with failing_as(f"index {target} cannot be changed"):
        if mappings:
            cluster.request("PUT", path_to(target, "_mapping"), mappings)
        if settings:
            cluster.request("PUT", path_to(target, "_settings"), flat_settings(settings))


def _of(target: str, answer: Any) -> Mapping[str, Any]:
    found = answer.get(target) if isinstance(answer, dict) else None
    if not isinstance(found, dict):
        raise DestinationError(f"mappings of index {target} cannot be read: the answer is {shortened(answer)}")
    return found


def _portions(fields: Sequence[str]) -> Iterator[list[str]]:
    """The fields, as many at a time as one request names."""
    some: list[str] = []
    for name in fields:
        if some and sum(map(len, some)) + len(some) * 3 + len(name) > _MOST_IN_A_PATH:
            yield some
            some = []
        some.append(name)
    if some:
        yield some
