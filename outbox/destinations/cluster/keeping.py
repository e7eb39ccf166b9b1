"""What an index of a cluster gives back of its documents, by its mappings and settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from outbox.destinations.cluster.wire import Cluster, path_to
from outbox.destinations.kept import Kept

_ASKED: Final = ",".join(
    (
        "*.mappings",
        "*.settings.index.default_pipeline",
        "*.settings.index.final_pipeline",
        "*.settings.index.mapping",
        "*.defaults.index.mapping.exclude_source_vectors",
    )
)

_NEAR: Final = 1e-6
"""Of numbers that come back as float32, also where the index keeps a vector as its direction and its length."""

_ROUGH: Final = 2**-7
"""Of those of which a cluster keeps the first eight bits: weights, and elements of the type bfloat16."""


def look(cluster: Cluster, target: str) -> Kept:
    """What a physical index gives back. Raises as `Cluster.request` does."""
    # The defaults not by their names: a cluster names others then than the index has.
    answer = cluster.request("GET", path_to(target), accept=(404,), include_defaults="true", filter_path=_ASKED)
    found = answer.body if answer.status != 404 and isinstance(answer.body, dict) else {}
    return of_index(next(iter(found.values()), {}))


def of_index(index: Mapping[str, Any]) -> Kept:
    """By what a cluster says of an index: its `mappings`, `settings` and `defaults`."""
    settings = index.get("settings", {}).get("index", {})
    defaults, given = index.get("defaults", {}).get("index", {}).get("mapping", {}), settings.get("mapping", {})
    mappings = index.get("mappings", {})
    source, fields = mappings.get("_source", {}), dict(_fields(mappings))
    mode = source.get("mode", given.get("source", {}).get("mode", "")).lower()
    # Only an index that says so is asked for its vectors: a cluster that cannot hide them refuses the question.
    hides = str({**defaults, **given}.get("exclude_source_vectors", False)).lower() == "true"
    legacy = str(given.get("semantic_text", {}).get("use_legacy_format", False)).lower() == "true"
    return Kept(
        includes=tuple(source.get("includes", ())),
        excludes=tuple(source.get("excludes", ())),
        vectors={path: _tolerance(rule) for path, rule in fields.items() if _is_vector(rule)} if hides else {},
        asks_for_vectors=hides,
        embedded_texts=frozenset(path for path, rule in fields.items() if legacy and rule.get("type") == _TEXT),
        stores_none=mode == "disabled" or str(source.get("enabled", True)).lower() == "false",
        synthetic=mode == "synthetic",
        pipelines=pipelines(settings),
    )


def pipelines(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """What every document of an index passes first, by its settings under `index`."""
    named = (settings.get(f"{when}_pipeline", "_none") for when in ("default", "final"))
    return tuple(each for each in named if each != "_none")


_TEXT: Final = "semantic_text"


def _fields(rule: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rule of every field, by its path."""
    for name, below in rule.get("properties", {}).items():
        yield f"{above}{name}", below
        yield from _fields(below, f"{above}{name}.")


def _is_vector(rule: Mapping[str, Any]) -> bool:
    return rule.get("type") in ("dense_vector", "rank_vectors", "sparse_vector")


def _tolerance(rule: Mapping[str, Any]) -> float:
    return _ROUGH if rule["type"] == "sparse_vector" or rule.get("element_type") == "bfloat16" else _NEAR
