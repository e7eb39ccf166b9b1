"""verify: does every index hold what the database says?"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any

import click

from outbox import logs
from outbox.cli.audit import operator_name
from outbox.cli.entities import required_registry, warn_of_unregistered
from outbox.cli.options import database_option, json_option
from outbox.cli.wiring import load_settings, open_store
from outbox.destinations import destination_of
from outbox.store import audit
from outbox.store.drift import DriftKind
from outbox.verify import MOST_SHARES, Checked, Drift, Totals, Verification, lost, share

LINE_EVERY_S = 5.0


class Percent(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic in later versions of click only
    """`1%` or `1`, as a part of one."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            part = float(str(value).removesuffix("%")) / 100
        except ValueError:
            self.fail(f"{value!r} is no percentage; e.g. 1%", param, ctx)
        if not 1 / MOST_SHARES <= part <= 1:
            self.fail(f"{value!r} is not between 0.1% and 100%", param, ctx)
        return part


@click.command()
@click.option("--entity", "entities", multiple=True, metavar="NAME", help="Only this entity; may be repeated.")
@click.option("--tenant", metavar="TENANT", help="Only documents of this tenant.")
@click.option("--sample", type=Percent(), metavar="PERCENT", default=1.0, help="Only so many, drawn by chance: 1%.")
@click.option("--repair", is_flag=True, help="Write a refresh row for each document that is wrong.")
@json_option
@database_option
def verify(
    entities: tuple[str, ...],
    tenant: str | None,
    sample: float,
    repair: bool,
    as_json: bool,
    database_url: str | None,
) -> None:
    """Compare entities with their indexes, both ways, under traffic.

    Reports documents that are missing, different or extra, or whose version is too high for any change, and rows that
    no document can be made of. Documents with rows on their way are not judged. Changes nothing without --repair, which
    writes rows for a relay to deliver. With --json: a line for each document, and a last one with the totals.

    Exits 1 if anything is not as the database says, also if it has been repaired.

    \b
    Examples:
      outbox-relay verify
      outbox-relay verify --entity contacts --tenant acme --sample 1%
      outbox-relay verify --repair
      outbox-relay verify --json | jq -r 'select(.kind == "extra").id'
    """
    loaded = load_settings(database_url=database_url)
    registry = required_registry(loaded, "verify needs to know the entities")
    destination = destination_of(loaded)
    started, indexes = time.monotonic(), set[str]()
    try:
        with open_store(loaded) as store:
            verification = Verification(
                store, destination, registry, entities=entities, tenant_id=tenant, sample=sample, repair=repair
            )
            if not entities:
                warn_of_unregistered(store, registry, "is not compared")
            by = operator_name()
            told = {"entity": entities, "tenant": tenant, "sample": share(sample), "repair": repair}
            with (
                audit.noted(store, by, "verify", audit.described(told)) as note,
                _progress() as show,
                closing(verification.recorded(by)) as steps,
            ):
                for step in steps:
                    if isinstance(step, Checked):
                        show(step)
                    else:
                        click.echo(_as_json(step) if as_json else _line(step))
                        indexes.add(step.index)
                note.affected = verification.totals.repaired
            gone = lost(store, destination, indexes)
    finally:
        destination.close()
    totals, took = verification.totals, time.monotonic() - started
    if as_json:
        summary = {"kind": "totals", **totals.as_found(), "drift": totals.drift, "epoch": totals.epoch, "seconds": took}
        click.echo(json.dumps(summary))
    else:
        for line in _summary(totals, took, repair, gone):
            click.echo(line)
    if totals.drift:
        sys.exit(1)


def _as_json(drift: Drift) -> str:
    facts = {**asdict(drift), "id": drift.document_id, "tenant": drift.tenant_id}
    return json.dumps({name: value for name, value in facts.items() if name not in ("document_id", "tenant_id")})


def _line(drift: Drift) -> str:
    parts = [f"{drift.kind:<9}  {drift.index}/{drift.document_id}"]
    if drift.tenant_id is not None:
        parts.append(f"tenant {drift.tenant_id}")
    if drift.fields:
        parts.append(f"differs in {', '.join(drift.fields)}")
    if drift.kind is DriftKind.VERSION:
        parts.append(f"version {drift.version} is above any of the outbox")
    if drift.error:
        parts.append(drift.error)
    return logs.safe("  ".join(parts))


def _summary(totals: Totals, took: float, repair: bool, gone: Sequence[str]) -> Iterator[str]:
    looked = f"{totals.documents:,} documents of the database and {totals.listed:,} of the index in {took:,.1f} s"
    found = ", ".join(f"{totals.found[kind]:,} {kind}" for kind in DriftKind if totals.found[kind])
    yield f"{looked}: {found or ('no drift in what could be judged' if totals.in_flight else 'no drift')}"
    if totals.in_flight:
        yield f"{totals.in_flight:,} not judged: rows of theirs are on their way"
    if totals.epoch is not None:
        yield f"the epoch is {totals.epoch} now: the index held versions of a later one than the outbox"
    if totals.repaired:
        yield f"{logs.rows(totals.repaired, 'is', 'are')} written for them; a relay delivers them"
    if gone:
        yield f"readers find no index {' and no index '.join(gone)}  → outbox-relay reindex --all"
    elif totals.drift and not repair:
        yield "→ outbox-relay verify --repair"


@contextmanager
def _progress() -> Iterator[Callable[[Checked], None]]:
    """A bar on a terminal, otherwise a line now and then; both on standard error."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # What goes into a file must not end on the terminal because the bar is there.
    with Bar(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty()) as bar:
        tasks: dict[tuple[str, str], Any] = {}

        def show(step: Checked) -> None:
            key = (step.side, step.name)
            if key not in tasks:
                tasks[key] = bar.add_task(f"{step.side} {step.name}", total=step.total)
            bar.update(tasks[key], completed=step.done, total=step.total)

        yield show


class _Lines:
    def __init__(self) -> None:
        self._next = time.monotonic() + LINE_EVERY_S

    def __call__(self, step: Checked) -> None:
        if time.monotonic() >= self._next:
            of = "" if step.total is None else f" of {step.total:,}"
            click.echo(f"{step.side} {step.name}: {step.done:,}{of}", err=True)
            self._next = time.monotonic() + LINE_EVERY_S


commands = [verify]
