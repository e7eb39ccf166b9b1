"""What an index holds at one moment, page by page, each document once: the two ways in which products offer it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from outbox.destinations.base import TENANT_FIELD, Listed
from outbox.destinations.cluster.failures import describe, failing_as
from outbox.destinations.cluster.wire import FAILURES, Cluster, Missing, path_to
from outbox.errors import DestinationUnanswered

_KEPT: Final = "5m"
_ANSWERED_FIELDS: Final = ",".join(
    (
        "pit_id",
        "_scroll_id",
        "_shards.failed",
        *(f"hits.hits.{each}" for each in ("_id", "_version", "_source", "sort")),
    )
)


def pages(
    cluster: Cluster, name: str, size: int, share: tuple[int, int], *, tenants: bool
) -> Iterator[dict[str, Listed]]:
    """The documents of an index in pages of `size`; nothing if there is no such index. Raises `DestinationError`;
    `DestinationUnanswered` where the cluster has lost its place in the index: list it anew."""
    part, parts = share
    wanted = {
        "size": size,
        "version": True,
        "_source": {"includes": [TENANT_FIELD]} if tenants else False,
    } | ({} if parts == 1 else {"slice": {"id": part, "max": parts}})
    with failing_as(f"index {name} cannot be listed"):
        try:
            cluster.request("POST", path_to(name, "_refresh"))
        except Missing:
            return
        try:
            for hits in cluster.product.hits(cluster, name, wanted):
                if tenants:
                    yield {hit["_id"]: Listed(hit["_version"], _tenant_of(hit.get("_source"))) for hit in hits}
                else:
                    yield {hit["_id"]: Listed(hit["_version"]) for hit in hits}
        except Missing as error:
            # Its place is lost with a node that was restarted, or given up after `_KEPT`; or the index itself is gone
            # meanwhile, as listing it anew will show.
            raise DestinationUnanswered(f"index {name} cannot be listed to its end: {describe(error)}") from error


def by_point_in_time(cluster: Cluster, name: str, wanted: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    """Each page asks for what is behind the one before, so another node may be asked for it again."""
    point = cluster.request("POST", path_to(name, "_pit"), keep_alive=_KEPT).body["id"]
    try:
        behind: dict[str, Any] = {}
        while True:
            # Not by _id: sorting by it is refused unless the cluster is configured to allow it.
            page = {**wanted, **behind, "sort": ["_shard_doc"], "track_total_hits": False}
            page["pit"] = {"id": point, "keep_alive": _KEPT}
            answer = cluster.request("POST", "/_search", page, filter_path=_ANSWERED_FIELDS).body
            if not (hits := _hits(answer, name)):
                return
            point = answer["pit_id"]
            yield hits
            behind = {"search_after": hits[-1]["sort"]}
    finally:
        with suppress(*FAILURES):  # it ends by itself
            cluster.request("DELETE", "/_pit", {"id": point})


def by_scroll(cluster: Cluster, name: str, wanted: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    """The cluster keeps the position. So no page is asked for twice: the second answer would be the page after it."""
    page = {**wanted, "sort": ["_doc"]}
    answer = cluster.request("POST", path_to(name, "_search"), page, filter_path=_ANSWERED_FIELDS, scroll=_KEPT).body
    try:
        while hits := _hits(answer, name):
            yield hits
            following = {"scroll": _KEPT, "scroll_id": answer["_scroll_id"]}
            answer = cluster.request("POST", "/_search/scroll", following, once=True, filter_path=_ANSWERED_FIELDS).body
    finally:
        with suppress(*FAILURES):  # it ends by itself
            cluster.request("DELETE", "/_search/scroll", {"scroll_id": answer["_scroll_id"]})


def _hits(answer: Mapping[str, Any], name: str) -> list[Any]:
    if failed := answer.get("_shards", {}).get("failed"):
        raise DestinationUnanswered(f"index {name} cannot be listed: {failed} of its shards did not answer")
    hits: list[Any] = answer.get("hits", {}).get("hits", [])
    return hits


def _tenant_of(source: Mapping[str, Any] | None) -> str | None:
    """A field that holds something else than text is compared by what it looks like."""
    value = (source or {}).get(TENANT_FIELD)
    return value if value is None or isinstance(value, str) else json.dumps(value)
