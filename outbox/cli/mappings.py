"""mappings show|apply: what is registered of each index, and adding it where an index lacks it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from outbox import logs
from outbox import mappings as registered
from outbox.cli.audit import operator_name
from outbox.cli.entities import required_registry
from outbox.cli.options import database_option, json_option, yes_option
from outbox.cli.wiring import load_settings, open_store
from outbox.destinations import destination_of
from outbox.destinations.differences import Difference
from outbox.entities.keys import Tenancy
from outbox.entities.registry import EntityRegistry
from outbox.mappings import IndexDrift
from outbox.store import audit

NEEDED_FOR = "mappings are those of the registry"


@click.group()
def mappings() -> None:
    """Mappings and settings of the indexes, as registered."""


_entity_option = click.option(
    "--entity", "entities", multiple=True, metavar="NAME", help="Only of this entity; repeatable."
)


@mappings.command()
@_entity_option
@json_option
def show(entities: tuple[str, ...], as_json: bool) -> None:
    """Show the mappings and settings that each index is created with.

    Those of OUTBOX_ENTITIES, derived ones too; neither database nor destination is asked.

    \b
    Examples:
      outbox-relay mappings show
      outbox-relay mappings show --entity contacts --json | jq .contacts.mappings
    """
    shown = _registered(required_registry(load_settings(), NEEDED_FOR), entities)
    if as_json:
        click.echo(json.dumps(shown))
        return
    for index, options in shown.items():
        click.echo(logs.safe(f"index {index} of {', '.join(options['entities'])}"))
        rows = list(_rows(options["mappings"], options["settings"]))
        if rows:
            _print_table(("field", "type", "more"), rows)
        else:
            click.echo("  nothing is registered: the destination decides by what it gets")


@mappings.command()
@_entity_option
@click.option("--dry-run", is_flag=True, help="Only show what differs, and what would be done about it.")
@yes_option
@json_option
@database_option
def apply(entities: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool, database_url: str | None) -> None:
    """Add to the indexes what needs no rebuild.

    Of what is registered, that is new fields and subfields, parameters that the destination changes in place, and
    dynamic settings. Documents that are there get what is new when they are sent again. What takes a rebuild is shown,
    and left to 'outbox-relay reindex'. Exits 1 if that, or anything else, is left.

    \b
    Examples:
      outbox-relay mappings apply --dry-run
      outbox-relay mappings apply --entity contacts --yes
      outbox-relay mappings apply --dry-run --json | jq '.[].differences[]'
    """
    loaded = load_settings(database_url=database_url)
    registry = required_registry(loaded, NEEDED_FOR)
    for name in entities:
        registry[name]  # raises for one that is not registered
    destination = destination_of(loaded)
    try:
        with open_store(loaded) as store:
            found = registered.drift(store, destination, registry, entities)
            refused: dict[Difference, str] = {}
            if not as_json:
                _say(found)
            left = found
            if any(each.additive for each in found) and not dry_run:
                if not yes:
                    click.confirm("Add what can be added?", abort=True, err=as_json)
                told = audit.described({"index": [each.index for each in found]})
                with audit.noted(store, operator_name(), "mappings apply", told):
                    for each in found:
                        refused |= registered.apply(destination, each)
                left = registered.drift(store, destination, registry, entities)
    finally:
        destination.close()
    if as_json:
        click.echo(json.dumps([_facts(each, left, refused) for each in found]))
    elif not dry_run:
        _say_what_became(found, left, refused)
    if any(each.unknown or (each.rebuild if dry_run else each.differences) for each in left):
        sys.exit(1)


def _registered(registry: EntityRegistry, entities: Sequence[str]) -> dict[str, Any]:
    """Mappings and settings by index; `{tenant}_contacts` stands for those of all tenants."""
    shown: dict[str, Any] = {}
    for entity in [registry[name] for name in entities] or registry:
        of_tenants = entity.tenancy is Tenancy.INDEX
        options = registry.index_options(f"tenant_{entity.index}" if of_tenants else entity.index)
        name = f"{{tenant}}_{entity.index}" if of_tenants else entity.index
        if options:
            shown.setdefault(name, {"entities": [], "mappings": options[0], "settings": options[1]})
            shown[name]["entities"].append(entity.name)
    return shown


def _rows(mapping: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, value in mapping.items():
        if name != "properties":
            yield name, "", _compact(value)
    yield from _fields(mapping.get("properties") or {}, "")
    for name, value in settings.items():
        yield f"setting {name}", "", _compact(value)


def _fields(properties: Mapping[str, Any], above: str) -> Iterator[tuple[str, ...]]:
    for name, rule in properties.items():
        within = rule.get("properties") or {}
        more = {key: value for key, value in rule.items() if key not in ("type", "properties", "fields")}
        if more or not within or "type" in rule:
            said = ", ".join(f"{key}: {_compact(value)}" for key, value in more.items())
            yield f"{above}{name}", str(rule.get("type", "object")), said
        yield from _fields(rule.get("fields") or {}, f"{above}{name}.")
        yield from _fields(within, f"{above}{name}.")


def _compact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _say(found: Sequence[IndexDrift]) -> None:
    """What differs, and what is not compared."""
    rows = [
        (each.index, _named(one), one.held or "missing", one.registered, "add" if one.additive else "reindex")
        for each in found
        for one in each.differences
    ]
    if rows:
        _print_table(("index", "what", "is", "registered", "remedy"), rows)
    for each in found:
        if each.unknown:
            click.echo(logs.safe(f"index {each.index} is not compared: {each.unknown}"), err=True)
    if not found:
        click.echo("no index so far: 'outbox-relay reindex --all', or the first row, makes each as registered")
    elif not rows and not any(each.unknown for each in found):
        number = len(found)
        click.echo(f"{number:,} {'index is' if number == 1 else 'indexes are'} as registered")


def _say_what_became(
    found: Sequence[IndexDrift], left: Sequence[IndexDrift], refused: Mapping[Difference, str]
) -> None:
    for why in refused.values():
        click.echo(logs.safe(why), err=True)
    asked = sum(len(each.additive) for each in found)
    added = asked - sum(len(each.additive) for each in left)
    if asked:
        click.echo(f"{added:,} of {asked:,} added")
    for each in found:
        if any(one.mappings for one in each.additive):
            name = each.entities[0]
            click.echo(
                f"documents of {each.index} that are there get it when they are sent again"
                f"  → outbox-relay reindex --entity {shlex.quote(name)} --in-place"
            )
    for each in left:
        if each.differences:
            click.echo(
                f"{each.index} takes a rebuild  → outbox-relay reindex --entity {shlex.quote(each.entities[0])}",
                err=True,
            )


def _facts(each: IndexDrift, left: Sequence[IndexDrift], refused: Mapping[Difference, str]) -> dict[str, Any]:
    still = {one for other in left if other.index == each.index for one in other.differences}
    return {
        "index": each.index,
        "target": each.target,
        "entities": each.entities,
        "not_compared": each.unknown or None,
        "differences": [
            {
                "what": one.what,
                "parameter": one.parameter,
                "registered": one.registered,
                "index_has": one.held,
                "remedy": "apply" if one.additive else "reindex",
                "applied": one not in still,
                "error": refused.get(one),
            }
            for one in each.differences
        ],
    }


def _named(one: Difference) -> str:
    return one.what if one.parameter is None else f"{one.what}.{one.parameter}"


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(logs.safe(cell)) for cell in row))
    Console().print(table)


commands = [mappings]
