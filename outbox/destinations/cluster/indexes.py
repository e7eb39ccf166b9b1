"""Physical indexes and the aliases that lead to them. Every function raises `DestinationError`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from outbox.destinations.base import IndexFacts
from outbox.destinations.cluster.failures import cause_of, describe, failing_as, type_and_reason
from outbox.destinations.cluster.wire import Cluster, Refused, path_to
from outbox.destinations.differences import flat_settings
from outbox.errors import DestinationError, DestinationUnanswered, shortened

LOOKED_AT: Final = ",".join(
    ("*.aliases", *(f"*.settings.index.{each}" for each in ("gc_deletes", "default_pipeline", "final_pipeline")))
)
"""What is asked of a physical index before rows are sent to it."""

_HELD_BACK: Final = ("index.refresh_interval", "index.number_of_replicas")
"""What a new index gets only when it is filled."""


def ensure(
    cluster: Cluster,
    name: str,
    mappings: Mapping[str, Any] | None,
    settings: Mapping[str, Any] | None,
    gc_deletes: str,
) -> str:
    """The physical index of `name`, created if nothing has that name; it remembers deletes for `gc_deletes`."""
    with failing_as(f"index {name} cannot be prepared"):
        kept = {"index.gc_deletes": gc_deletes}
        target = _find(cluster, name) or _create_with_alias(cluster, name, mappings, {**(settings or {}), **kept})
        _put_settings(cluster, target, kept)
    return target


def _find(cluster: Cluster, name: str) -> str | None:
    answer = cluster.request("GET", path_to(name, "_alias"), accept=(404,))
    if answer.status == 404:
        return None
    found = answer.body
    if not isinstance(found, dict) or not found or not all(isinstance(each, dict) for each in found.values()):
        title = cluster.product.title
        raise DestinationError(f"index {name} cannot be looked up: {title} does not answer {shortened(found)}")
    if len(found) > 1:
        raise DestinationError(
            f"alias {name} points to {len(found)} indexes ({', '.join(sorted(found))}); make it point to one"
        )
    return str(next(iter(found)))


def _create_with_alias(
    cluster: Cluster, name: str, mappings: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> str:
    target = f"{name}-000001"
    # 400: another relay was faster (resource_already_exists_exception), or the name is taken
    wanted = {"aliases": {name: {}}, "settings": settings} | ({} if mappings is None else {"mappings": mappings})
    created = cluster.request("PUT", path_to(target), wanted, accept=(400,))
    if (found := _find(cluster, name)) is None:
        raise DestinationError(f"index {target} cannot be created: {shortened(created.body, 300)}")
    return found


def inspect(cluster: Cluster, name: str, target: str) -> IndexFacts:
    """The state of a physical index and of its name."""
    with failing_as(f"index {name} cannot be looked at"):
        settings = cluster.request("GET", path_to(target, "_settings", "index.gc_deletes"), accept=(404,))
        readers = cluster.request("GET", path_to(name, "_alias"), accept=(404,))
    if not isinstance(settings.body, dict) or not isinstance(readers.body, dict):
        title = cluster.product.title
        raise DestinationError(f"index {name} cannot be looked at: {title} does not answer {shortened(readers.body)}")
    of_index = settings.body.get(target, {}).get("settings", {}).get("index", {})
    return IndexFacts(
        exists=settings.status != 404,
        readers=() if readers.status == 404 else tuple(sorted(readers.body)),
        gc_deletes=of_index.get("gc_deletes", "60s"),  # the default is left out of the answer
    )


def create(
    cluster: Cluster, target: str, mappings: Mapping[str, Any], settings: Mapping[str, Any], gc_deletes: str
) -> None:
    """A physical index without an alias, cheap to fill."""
    what = f"index {target} cannot be created"
    held_back = {"index.refresh_interval": "-1", "index.number_of_replicas": 0}
    with failing_as(what):
        try:
            wanted = {**flat_settings(settings), **held_back, "index.gc_deletes": gc_deletes}
            # Once: the first attempt may have made the index.
            created = cluster.request(
                "PUT", path_to(target), {"mappings": mappings, "settings": wanted}, once=True
            ).body
        except Refused as error:  # in full: it says which field of the mappings is wrong
            cause = cause_of(error)
            why = describe(error) if cause is None else ": ".join(type_and_reason(cause))
            # By a late request of a process that was killed: whoever tries again removes it first.
            made = cause is not None and cause.get("type") == "resource_already_exists_exception"
            raise (DestinationUnanswered if made else DestinationError)(f"{what}: {why}") from error
        if not created.get("shards_acknowledged", True):
            drop(cluster, target)
            raise DestinationError(f"{what}: no node takes its primary shards")
        _hide(cluster, target)


def _hide(cluster: Cluster, target: str) -> None:
    """Take the aliases away that templates of the cluster have given a new index: readers would get it unfilled."""
    found = cluster.request("GET", path_to(target, "_alias")).body.get(target, {}).get("aliases", {})
    if found:
        actions = [{"remove": {"index": target, "alias": alias}} for alias in found]
        cluster.request("POST", "/_aliases", {"actions": actions})


def finish(cluster: Cluster, target: str, settings: Mapping[str, Any]) -> None:
    """Give a filled index what was held back, and make all of its documents visible."""
    given = flat_settings(settings)
    with failing_as(f"index {target} cannot get its settings"):
        by_template = flat_settings(_template_of(cluster, target).get("settings", {}))
        # null: the default of the cluster
        _put_settings(cluster, target, {name: given.get(name, by_template.get(name)) for name in _HELD_BACK})
    refresh(cluster, target)


def _template_of(cluster: Cluster, target: str) -> Mapping[str, Any]:
    """What an index of this name gets from the templates of the cluster; nothing if the user may not see them."""
    path = path_to("_index_template", "_simulate_index", target)
    found = cluster.request("POST", path, accept=(400, 403, 404, 405)).body
    template = found.get("template") if isinstance(found, dict) else None
    return template if isinstance(template, dict) else {}


def refresh(cluster: Cluster, name: str) -> None:
    """Make what was applied so far visible to searches."""
    with failing_as(f"index {name} cannot be refreshed"):
        cluster.request("POST", path_to(name, "_refresh"))


def swap(cluster: Cluster, name: str, old: str | None, new: str, *, adopt: bool) -> None:
    """Lead `name`, and all other aliases of `old` as they are, to `new` instead, in one step; `adopt`: remove the index
    `old` in it."""
    what = f"alias {name} cannot be moved from {old or 'nothing'} to {new}"
    aliases: dict[str, Mapping[str, Any]] = {name: {}}
    with failing_as(what):
        if old is None:
            if leads_to := _find(cluster, name):
                raise DestinationError(f"{what}: it leads to {leads_to}")
            aliases |= _template_of(cluster, new).get("aliases", {})
        else:
            found = cluster.request("GET", path_to(old, "_alias"), accept=(404,)).body
            if not isinstance(found, dict):
                raise DestinationError(f"{what}: {cluster.product.title} does not answer {shortened(found)}")
            aliases |= found.get(old, {}).get("aliases", {})
        actions: list[dict[str, Any]] = [{"remove_index": {"index": old}}] if adopt else []
        for alias, given in aliases.items():
            if old and not adopt:
                actions.append({"remove": {"index": old, "alias": alias, "must_exist": True}})
            actions.append({"add": {**given, "index": new, "alias": alias}})
        cluster.request("POST", "/_aliases", {"actions": actions})


def drop(cluster: Cluster, target: str) -> None:
    """Remove a physical index; one that is missing is fine."""
    with failing_as(f"index {target} cannot be removed"):
        cluster.request("DELETE", path_to(target), accept=(404,))


def _put_settings(cluster: Cluster, target: str, settings: Mapping[str, Any]) -> None:
    cluster.request("PUT", path_to(target, "_settings"), settings)
