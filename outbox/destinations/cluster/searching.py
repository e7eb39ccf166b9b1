"""Searches of an index. Every function raises `DestinationError`."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from outbox.destinations.base import TENANT_FIELD, Found, Hit, index_missing
from outbox.destinations.cluster.failures import failing_as
from outbox.destinations.cluster.wire import Cluster, Missing, path_to
from outbox.destinations.passages import BEGIN, END, passage
from outbox.destinations.query import Filter, Query, nested_part, no_text, words_alone
from outbox.errors import InvalidInput

_TEXTS: Final = frozenset({"text", "match_only_text"})
_LONGEST_MARKED: Final = 1_000_000
"""Characters of a text in which words are marked: the most that an index allows by default."""


def has_tenant(cluster: Cluster, name: str, tenants: tuple[str, ...]) -> bool:
    """Whether a document is of a tenant, in one of these spellings; False if there is no such index."""
    with failing_as(f"index {name} cannot be searched"):
        try:
            cluster.request("POST", path_to(name, "_refresh"))
            compared = _fields(cluster, name, {TENANT_FIELD})
            only = {"query": _condition(compared, Filter(TENANT_FIELD, tenants))}
            return bool(cluster.request("POST", path_to(name, "_count"), only, terminate_after=1).body["count"])
        except Missing:
            return False


def search(cluster: Cluster, name: str, asked: Query) -> Found:
    """The best matches, best first. Raises `IndexMissing` and `InvalidInput` too."""
    filters = asked.filters
    if asked.tenants is not None:
        filters = (*filters, Filter(TENANT_FIELD, asked.tenants))
    paths = {each.path for each in filters} | {path for path, _ in asked.sort}
    with failing_as(f"index {name} cannot be searched"):
        try:
            compared = _fields(cluster, name, paths, asked.highlight) if paths or asked.highlight else {}
            wanted = {
                "from": asked.offset,
                "size": asked.limit,
                "query": _query(asked.words, [_condition(compared, each) for each in filters]),
                "track_total_hits": True,
                "_source": True if asked.fields is None else {"includes": asked.fields} if asked.fields else False,
                **_sort(compared, asked),
                **_highlight(cluster, asked),
            }
            # The copies of a shard may order equal matches differently: the pages of one search come of one copy.
            same = f"{zlib.crc32(repr((asked.words, asked.tenants, asked.filters, asked.sort)).encode()):08x}"
            found = cluster.request("POST", path_to(name, "_search"), wanted, preference=same).body["hits"]
        except Missing:
            raise index_missing(name) from None
    return Found(tuple(map(_hit, found["hits"])), found["total"]["value"])


def _hit(found: Mapping[str, Any]) -> Hit:
    marked = {path: passage(texts) for path, texts in found.get("highlight", {}).items()}
    return Hit(found["_id"], found["_score"], found.get("_source", {}), marked)


def _query(words: str | None, conditions: list[Any]) -> dict[str, Any]:
    if words is None:
        return {"constant_score": {"filter": {"bool": {"filter": conditions}}, "boost": 0}}
    if not words:
        words = " "  # no words match nothing, but the beginning of an empty one matches everything
    should = [
        {"multi_match": {"query": words, "type": "best_fields", "fuzziness": "AUTO", "lenient": True}},
        {"multi_match": {"query": words, "type": "bool_prefix", "lenient": True, "boost": 2}},
    ]
    return {"bool": {"should": should, "minimum_should_match": 1, "filter": conditions}}


def _condition(compared: Mapping[str, str], wanted: Filter) -> dict[str, Any]:
    field = compared[wanted.path]
    if wanted.values is None:
        return {"range": {field: dict(wanted.bounds)}}
    return {"terms": {field: list(wanted.values)}}


def _sort(compared: Mapping[str, str], asked: Query) -> dict[str, Any]:
    if not asked.sort:
        return {}
    # A field that no document has yet is none that every document lacks: without its type this would be an error.
    by: list[Any] = [
        {compared[path]: {"order": "desc" if largest_first else "asc", "missing": "_last", "unmapped_type": "keyword"}}
        for path, largest_first in asked.sort
    ]
    return {"sort": [*by, "_score"], "track_scores": True}


def _highlight(cluster: Cluster, asked: Query) -> dict[str, Any]:
    if not asked.highlight:
        return {}
    return {
        "highlight": {
            "fields": {path: {} for path in asked.highlight},
            "type": "unified",
            "number_of_fragments": 0,  # whole texts: passages are cut as for the other destinations
            "pre_tags": [BEGIN],
            "post_tags": [END],
            cluster.product.most_marked: _LONGEST_MARKED,
        }
    }


def _fields(cluster: Cluster, name: str, compared: Iterable[str], marked: Iterable[str] = ()) -> dict[str, str]:
    """The field to compare for each path. Raises `InvalidInput` where there is none, or no text to be marked."""
    paths = {*compared, *marked}
    above = {path[:at] for path in paths for at, letter in enumerate(path) if letter == "."}
    asked = sorted(paths | above | {f"{path}.keyword" for path in compared})
    answer = cluster.request("GET", path_to(name, "_field_caps"), fields=",".join(asked))
    types = {path: set(found) for path, found in answer.body.get("fields", {}).items()}
    for path in paths:
        if inside := next(
            (each for each in above if path.startswith(f"{each}.") and "nested" in types.get(each, ())), ""
        ):
            raise InvalidInput(nested_part(path, inside))
    if other := next((path for path in marked if not types.get(path, _TEXTS) & _TEXTS), None):
        raise InvalidInput(no_text(other))
    found = {path: f"{path}.keyword" if types.get(path, set()) & _TEXTS else path for path in compared}
    for path, field in found.items():
        if field != path and "keyword" not in types.get(field, ()):
            raise InvalidInput(words_alone(path))
    return found
