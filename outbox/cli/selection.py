"""Which rows a command is about: the same words for dead and for pending ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from outbox import tenants
from outbox.cli.entities import registry_of
from outbox.cli.options import NUMBER
from outbox.entities.spelling import tenant_texts
from outbox.settings import Settings, span_ms
from outbox.store.models import now_ms
from outbox.store.store import Store

T = TypeVar("T", int, Sequence[Any])

index_option = click.option("--index", metavar="INDEX", help="Only rows of this index.")
tenant_option = click.option("--tenant", metavar="TENANT", help="Only rows of this tenant.")


def _span(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    try:
        span_ms("0s" if value is None else value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is {error}") from None
    return value


def selection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say which rows; a command gets them as `ids`, `document`, `index`, `tenant` and `older_than`."""
    for option in (
        click.option(
            "--older-than",
            metavar="AGE",
            callback=_span,
            help="Only rows that were written longer ago, e.g. 90s, 15m, 36h or 7d.",
        ),
        tenant_option,
        index_option,
        click.option("--document", metavar="DOCUMENT", help="Only rows of the document with this id."),
        click.option("--id", "ids", type=NUMBER, multiple=True, metavar="ID", help="Only this row; may be repeated."),
    ):
        command = option(command)
    return command


def found(
    store: Store,
    loaded: Settings,
    find: Callable[..., T],
    *,
    tenant: str | None,
    older_than: str | None,
    **selection: Any,
) -> T:
    """What `find` finds, asked as the store asks. Raises `UnknownTenant`."""
    selection["written_before"] = None if older_than is None else now_ms() - span_ms(older_than)
    if tenant is None:
        return find(store, **selection)
    if rows := find(store, tenants=tenant_texts(tenant), **selection):
        return rows
    registry = registry_of(loaded)  # only now: it imports the application, which knows more spellings, and more tenants
    tenants.require(store, registry, tenant)
    return find(store, tenants=tenant_texts(tenant, registry or ()), **selection)


def name_others(ids: Iterable[int], changed: Iterable[int], state: str) -> bool:
    """Say which of the named rows were not changed: they are not in the state. Returns whether there are any."""
    others = sorted({*ids}.difference(changed))
    for each in others:
        click.echo(f"row {each} is not {state}, or not of this selection: see 'outbox-relay show {each}'", err=True)
    return bool(others)
