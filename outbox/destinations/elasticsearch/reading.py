"""What the indexes hold: by id, page by page, counted, searched. Every function raises `DestinationError`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from elasticsearch import Elasticsearch, NotFoundError

from outbox import documents
from outbox.destinations.base import TENANT_FIELD, Hit, Listed, Stored, index_missing
from outbox.destinations.elasticsearch.failures import FAILURES, failing_as, type_and_reason
from outbox.errors import DestinationError, shortened

_NEWEST: Final = 1_000
_POINT_KEPT: Final = "5m"
_LISTED_FIELDS: Final = "pit_id,_shards.failed,hits.hits._id,hits.hits._version,hits.hits._source,hits.hits.sort"


def read(client: Elasticsearch, target: str, document_ids: Sequence[str]) -> dict[str, Stored]:
    """The documents that are there, by id."""
    if not document_ids:
        return {}  # asking for none is an error in Elasticsearch
    with failing_as(f"documents of index {target} cannot be read"):
        found = client.mget(index=target, ids=list(document_ids)).body["docs"]
    for each in found:  # a closed index must not look like an empty one
        if (failed := each.get("error")) and failed.get("type") != "index_not_found_exception":
            reason = shortened(type_and_reason(failed)[1], 200)
            raise DestinationError(f"documents of index {target} cannot be read: {reason}")
    return {each["_id"]: Stored(each["_version"], each["_source"]) for each in found if each.get("found")}


def pages(
    client: Elasticsearch, name: str, size: int, share: tuple[int, int], *, tenants: bool
) -> Iterator[dict[str, Listed]]:
    """What an index holds at one moment, page by page."""
    with failing_as(f"index {name} cannot be listed"):
        if not client.indices.exists(index=name):
            return
        client.indices.refresh(index=name)
        point = client.open_point_in_time(index=name, keep_alive=_POINT_KEPT)["id"]
        try:
            after: list[Any] | None = None
            while True:
                point, hits = _page(client, name, size, share, point, after, tenants=tenants)
                if not hits:
                    return
                if tenants:
                    yield {hit["_id"]: Listed(hit["_version"], _tenant_of(hit.get("_source"))) for hit in hits}
                else:
                    yield {hit["_id"]: Listed(hit["_version"]) for hit in hits}
                after = hits[-1]["sort"]
        finally:
            with suppress(*FAILURES):  # it ends by itself
                client.close_point_in_time(id=point)


def _page(
    client: Elasticsearch,
    name: str,
    size: int,
    share: tuple[int, int],
    point: str,
    after: list[Any] | None,
    *,
    tenants: bool,
) -> tuple[str, list[Any]]:
    """The hits behind `after`, and the point in time to ask with next."""
    part, parts = share
    # Not by _id: sorting by it is refused unless the cluster is configured to allow it.
    answer = client.search(
        size=size,
        version=True,
        source={"includes": [TENANT_FIELD]} if tenants else False,
        pit={"id": point, "keep_alive": _POINT_KEPT},
        sort=["_shard_doc"],
        search_after=after,
        slice=None if parts == 1 else {"id": part, "max": parts},
        track_total_hits=False,
        filter_path=_LISTED_FIELDS,
    ).body
    if failed := answer.get("_shards", {}).get("failed"):
        raise DestinationError(f"index {name} cannot be listed: {failed} of its shards did not answer")
    return answer["pit_id"], answer.get("hits", {}).get("hits", [])


def _tenant_of(source: Mapping[str, Any] | None) -> str | None:
    """A field that holds something else than text is compared by what it looks like."""
    value = (source or {}).get(TENANT_FIELD)
    return value if value is None or isinstance(value, str) else json.dumps(value)


def has_tenant(client: Elasticsearch, name: str, tenants: tuple[str, ...]) -> bool:
    """Whether a document is of a tenant, in one of these spellings; False if there is no such index."""
    with failing_as(f"index {name} cannot be searched"):
        try:
            client.indices.refresh(index=name)
            only = _of_tenant(client, name, tenants)
            return bool(client.count(index=name, query=only, terminate_after=1)["count"])
        except NotFoundError:
            return False


def search(client: Elasticsearch, name: str, query: str, tenant: object, limit: int) -> list[Hit]:
    """The best matches, best first; of one tenant, if given. Raises `IndexMissing` too."""
    if not query:
        query = " "  # no words match nothing, but the beginning of an empty one matches everything
    words = [
        {"multi_match": {"query": query, "type": "best_fields", "fuzziness": "AUTO", "lenient": True}},
        {"multi_match": {"query": query, "type": "bool_prefix", "lenient": True, "boost": 2}},
    ]
    with failing_as(f"index {name} cannot be searched"):
        try:
            only = [] if tenant is None else [_of_tenant(client, name, documents.tenant_spellings(tenant))]
            hits = client.search(
                index=name, size=limit, query={"bool": {"should": words, "minimum_should_match": 1, "filter": only}}
            )["hits"]["hits"]
        except NotFoundError:
            raise index_missing(name) from None
    return [Hit(hit["_id"], hit["_score"], hit["_source"]) for hit in hits]


def _of_tenant(client: Elasticsearch, name: str, tenants: tuple[str, ...]) -> dict[str, Any]:
    return {"terms": {_tenant_field(client, name): list(tenants)}}


def _tenant_field(client: Elasticsearch, name: str) -> str:
    """A text field would match parts of a tenant's name: 'acme' those of 'acme-2' too."""
    types = client.field_caps(index=name, fields=[TENANT_FIELD], filter_path="fields.*.*.type").body
    is_text = "text" in types.get("fields", {}).get(TENANT_FIELD, {})
    return f"{TENANT_FIELD}.keyword" if is_text else TENANT_FIELD


def newest_version(client: Elasticsearch, name: str) -> int:
    """The highest version among the documents that were written last; deleted ones are not seen."""
    with failing_as(f"versions of index {name} cannot be read"):
        try:
            client.indices.refresh(index=name)
            newest = client.search(
                index=name,
                size=_NEWEST,
                version=True,
                source=False,
                # Versions cannot be sorted by, the order of writes can; an empty index does not know the field.
                sort=[{"_seq_no": {"order": "desc", "unmapped_type": "long"}}],
                track_total_hits=False,
            )
        except NotFoundError:
            return 0
    return max((hit["_version"] for hit in newest["hits"]["hits"]), default=0)


def count(client: Elasticsearch, target: str) -> int:
    """How many documents are there."""
    with failing_as(f"documents of index {target} cannot be counted"):
        return int(client.count(index=target)["count"])
