"""What the indexes hold: by id and counted. Every function raises `DestinationError`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from outbox.destinations.base import Stored
from outbox.destinations.cluster.failures import failing_as, type_and_reason
from outbox.destinations.cluster.wire import Cluster, Missing, path_to
from outbox.destinations.kept import Kept
from outbox.errors import DestinationError, shortened

_NEWEST: Final = 1_000


def read(cluster: Cluster, target: str, document_ids: Sequence[str], kept: Kept) -> dict[str, Stored]:
    """The documents that are there, by id, as they were sent. `kept`: what the index gives back of them."""
    found = _found(cluster, target, document_ids, kept, as_written=False)
    return {each["_id"]: Stored(each["_version"], kept.as_sent(each.get("_source", {}))) for each in found}


def read_texts(cluster: Cluster, target: str, document_ids: Sequence[str], kept: Kept) -> dict[str, bytes]:
    """The same documents as JSON, with every digit of their numbers."""
    found = _found(cluster, target, document_ids, kept, as_written=True)
    return {each["_id"]: orjson.dumps(kept.as_sent(each.get("_source", {}))) for each in found}


def vectors_of(asks_for_vectors: bool) -> dict[str, Any]:
    """The parameter that brings vectors back, for a cluster with an index that hides them."""
    return {"_source_exclude_vectors": "false"} if asks_for_vectors else {}


def _found(
    cluster: Cluster, target: str, document_ids: Sequence[str], kept: Kept, *, as_written: bool
) -> list[dict[str, Any]]:
    if not document_ids:
        return []  # asking for none is an error
    with failing_as(f"documents of index {target} cannot be read"):
        wanted, more = {"ids": list(document_ids)}, vectors_of(kept.asks_for_vectors)
        path = path_to(target, "_mget")
        found = cluster.request("POST", path, wanted, as_written=as_written, **more).body["docs"]
    for each in found:  # a closed index must not look like an empty one
        if (failed := each.get("error")) and failed.get("type") != "index_not_found_exception":
            reason = shortened(type_and_reason(failed)[1], 200)
            raise DestinationError(f"documents of index {target} cannot be read: {reason}")
    return [each for each in found if each.get("found")]


def newest_version(cluster: Cluster, name: str) -> int:
    """The highest version among the documents that were written last; deleted ones are not seen."""
    with failing_as(f"versions of index {name} cannot be read"):
        try:
            cluster.request("POST", path_to(name, "_refresh"))
            wanted = {
                "size": _NEWEST,
                "version": True,
                "_source": False,
                # Versions cannot be sorted by, the order of writes can; an empty index does not know the field.
                "sort": [{"_seq_no": {"order": "desc", "unmapped_type": "long"}}],
                "track_total_hits": False,
            }
            newest = _hits(cluster, name, wanted)
        except Missing:
            return 0
    return max((hit["_version"] for hit in newest), default=0)


def _hits(cluster: Cluster, name: str, wanted: Mapping[str, Any]) -> list[Any]:
    hits: list[Any] = cluster.request("POST", path_to(name, "_search"), wanted).body["hits"]["hits"]
    return hits


def count(cluster: Cluster, target: str) -> int:
    """How many documents are there."""
    with failing_as(f"documents of index {target} cannot be counted"):
        return int(cluster.request("POST", path_to(target, "_count")).body["count"])
