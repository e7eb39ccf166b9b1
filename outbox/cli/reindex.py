"""reindex: rebuild an index from the database while rows keep flowing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import click

from outbox import logs
from outbox.cli.audit import operator_name
from outbox.cli.entities import registry_of, required_registry, warn_of_unregistered
from outbox.cli.interpreter import tuned
from outbox.cli.jobs import job_facts, job_line
from outbox.cli.options import NUMBER, database_option, json_option
from outbox.cli.signals import unwound_on_sigterm
from outbox.cli.wiring import load_settings, open_store
from outbox.destinations import destination_of
from outbox.destinations.base import Destination
from outbox.entities.registry import EntityRegistry
from outbox.errors import ConfigurationError, FailedOver, OutboxError, ReindexFailed, SchemaError
from outbox.reindex.reindexer import Reindexer
from outbox.reindex.rollback import drop_old, roll_back
from outbox.reindex.selection import Selection, rows_of, select
from outbox.reindex.work import Progress
from outbox.settings import Settings
from outbox.store import audit, jobs
from outbox.store.audit import Note
from outbox.store.models import JobState, now_ms
from outbox.store.store import Store

LINE_EVERY_S = 5.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """What the command was told, by the names that the audit has."""

    entities: tuple[str, ...]
    everything: bool
    tenant: str | None
    since: str | None
    in_place: bool
    keep_old: bool
    adopt: bool
    rate: float | None
    dry_run: bool
    resume: bool
    cancel: int | None
    rollback: bool
    drop_old: bool
    list: bool
    as_json: bool
    database_url: str | None


@click.command(name="reindex")
@click.option("--entity", "entities", multiple=True, metavar="NAME", help="The indexes of this entity; repeatable.")
@click.option("--all", "everything", is_flag=True, help="The indexes of all registered entities.")
@click.option("--tenant", metavar="TENANT", help="Only documents of this tenant.")
@click.option(
    "--from-date",
    "since",
    metavar="DATE",
    help="Only rows whose changed_at is not before that; in UTC, if the column has a time zone and DATE has none.",
)
@click.option("--in-place", is_flag=True, help="Write to the live index instead of a new one.")
@click.option("--keep-old", is_flag=True, help="Keep sending rows to the old index too, for --rollback.")
@click.option("--adopt", is_flag=True, help="A physical index has the name: remove it for an alias to the new one.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Documents a second, at most; repeat it with --resume.",
)
@click.option("--dry-run", is_flag=True, help="Count, and change nothing.")
@click.option("--resume", is_flag=True, help="Resume what was left unfinished.")
@click.option("--cancel", type=NUMBER, metavar="JOB", help="Stop a reindex and remove its new index.")
@click.option("--rollback", is_flag=True, help="Back to the index that --keep-old kept, which missed nothing.")
@click.option("--drop-old", is_flag=True, help="Remove the index that --keep-old kept.")
@click.option("--list", is_flag=True, help="Show reindexes, running and ended.")
@json_option
@database_option
def command(**given: Any) -> None:
    """Rebuild indexes from the database while rows keep flowing.

    A new index is filled beside the live one, rows go to both, and readers get the new one in one step when it is
    complete. Killed at any point, the same command resumes it. With --tenant, --from-date or --in-place the documents
    are written to the live index instead. --rate is not stored: a relay that resumes a reindex sends one request at a
    time instead.

    \b
    Examples:
      outbox-relay reindex --entity contacts
      outbox-relay reindex --all --rate 2000
      outbox-relay reindex --entity contacts --tenant t1 --dry-run
      outbox-relay reindex --entity contacts --from-date 2026-11-01
      outbox-relay reindex --entity contacts --keep-old
      outbox-relay reindex --entity contacts --rollback
      outbox-relay reindex --resume
      outbox-relay reindex --cancel 3
      outbox-relay reindex --list
    """
    options = _Options(**given)
    _check(options)
    loaded = load_settings(database_url=options.database_url)
    with open_store(loaded) as store:
        if options.list:
            _list(store, options.as_json)
            return
        if options.cancel is None:
            registry = required_registry(loaded, "no registry of entities")
        else:
            registry = registry_of(loaded) or EntityRegistry()
        with closing(destination_of(loaded)) as destination, unwound_on_sigterm(), tuned():
            reindexer = _reindexer(store, destination, registry, loaded, options.rate)
            if options.cancel is not None:
                _cancel(store, reindexer, options.cancel, options)
            elif options.resume:
                _resume(store, reindexer, registry, options)
            else:
                selections = _selected(store, registry, options)
                if options.dry_run:
                    _dry_run(store, selections, options.as_json)
                elif options.rollback or options.drop_old:
                    _use_old_index(store, destination, selections, options)
                else:
                    _rebuild(store, reindexer, selections, options)


def _check(options: _Options) -> None:
    """Show the help where nothing is asked for, and raise where two things are."""
    chosen = bool(options.entities or options.everything)
    if not (chosen or options.resume or options.list or options.cancel is not None):
        context = click.get_current_context()
        click.echo(context.get_help(), err=True)
        context.exit(2)
    ends = [name for name in ("resume", "cancel", "rollback", "drop_old", "list", "dry_run") if getattr(options, name)]
    if len(ends) > 1:
        raise click.UsageError(f"{' and '.join('--' + name.replace('_', '-') for name in ends)} do not go together")
    if options.entities and options.everything:
        raise click.UsageError("--entity and --all do not go together")
    if (options.resume or options.list or options.cancel is not None) and (options.tenant or options.since):
        raise click.UsageError("--resume, --list and --cancel are about whole jobs: leave --tenant and --from-date out")
    if (options.rollback or options.drop_old) and (options.tenant or options.since):
        raise click.UsageError("--rollback and --drop-old are about a whole index: leave --tenant and --from-date out")


def _reindexer(
    store: Store, destination: Destination, registry: EntityRegistry, loaded: Settings, rate: float | None
) -> Reindexer:
    return Reindexer(
        store,
        destination,
        registry,
        rate=rate,
        requests=loaded.concurrency,
        request_bytes=loaded.batch_bytes,
        lease_s=loaded.lease,
        request_timeout_s=loaded.request_timeout,
    )


def _selected(store: Store, registry: EntityRegistry, options: _Options) -> list[Selection]:
    found = select(
        store,
        registry,
        entities=options.entities,
        everything=options.everything,
        tenant=options.tenant,
        since=options.since,
        in_place=options.in_place,
        keep_old=options.keep_old,
        adopt=options.adopt,
    )
    if options.everything:
        warn_of_unregistered(store, registry, "stays as it is")
    return found


def _noted(store: Store, options: _Options) -> AbstractContextManager[Note]:
    told = {name: value for name, value in asdict(options).items() if name not in ("as_json", "database_url")}
    return audit.noted(store, operator_name(), "reindex", audit.described(told))


def _rebuild(store: Store, reindexer: Reindexer, selections: Iterable[Selection], options: _Options) -> None:
    def rebuild(chosen: Selection) -> None:
        _say_if_resumed(store, chosen.index)
        _follow(store, reindexer.run(chosen), chosen.index, options.as_json)

    with _noted(store, options):
        _one_after_another([(each.index, each) for each in selections], rebuild)


def _one_after_another(indexes: Iterable[tuple[str, T]], act: Callable[[T], None]) -> None:
    """Do something to several indexes, by their names: one that fails keeps no other from its turn. Raises
    `ReindexFailed` or `ConfigurationError` in the end if any has."""
    failed: list[OutboxError] = []
    for index, each in indexes:
        try:
            act(each)
        except (SchemaError, FailedOver):  # which are about all of them
            raise
        except (ReindexFailed, ConfigurationError) as error:
            if failed:
                click.echo(logs.safe(f"index {index}: {error}"), err=True)
            failed.append(error)
    if len(failed) == 1:
        raise failed[0]
    if failed:
        raise ReindexFailed(f"{len(failed)} indexes failed, the first: {failed[0]}")


def _say_if_resumed(store: Store, index: str) -> None:
    job = jobs.open_job(store, index)
    if job is not None and job.state == JobState.RUNNING and jobs.is_abandoned(store, job, now_ms()):
        click.echo(
            logs.safe(
                f"resumes {job} at step '{job.phase}', {job.documents:,} of {logs.rows(job.total)}: they are not read "
                f"again; 'outbox-relay reindex --cancel {job.id}' first, to begin anew"
            ),
            err=True,
        )


def _cancel(store: Store, reindexer: Reindexer, job: int, options: _Options) -> None:
    with _noted(store, options):
        outcome = reindexer.cancel(job)
    cancelled = jobs.find(store, job)
    click.echo(json.dumps(job_facts(store, cancelled)) if options.as_json and cancelled else outcome)


def _resume(store: Store, reindexer: Reindexer, registry: EntityRegistry, options: _Options) -> None:
    with _noted(store, options):
        wanted = {index for name in options.entities for index in _indexes_of(store, registry, name)}
        unfinished = [
            job
            for job in jobs.open_jobs(store)
            if jobs.is_abandoned(store, job, now_ms()) and (not wanted or job.index_name in wanted)
        ]
        if not unfinished:
            running = len(jobs.open_jobs(store))
            others = f"; {running} running: see 'outbox-relay reindex --list'" if running else ""
            click.echo(f"nothing to resume{others}", err=options.as_json)
        _one_after_another(
            [(job.index_name, job) for job in unfinished],
            lambda job: _follow(store, reindexer.resume(job), job.index_name, options.as_json),
        )


def _indexes_of(store: Store, registry: EntityRegistry, name: str) -> list[str]:
    return [registry[name].index, *(index for index in store.targets() if registry[name].index_names(index))]


def _use_old_index(store: Store, destination: Destination, selections: Iterable[Selection], options: _Options) -> None:
    """Lead readers back to the indexes that are kept, or remove these."""
    act = _drop_old if options.drop_old else _roll_back
    with _noted(store, options):
        kept = [each for each in selections if not options.everything or jobs.kept_index(store, each.index)]
        _one_after_another(
            [(each.index, each) for each in kept], lambda each: act(store, destination, each, options.as_json)
        )


def _drop_old(store: Store, destination: Destination, each: Selection, as_json: bool) -> None:
    removed = drop_old(store, destination, each.index)
    _show(as_json, {"index": each.index, "removed": removed}, f"index {each.index}: {removed} is removed")


def _roll_back(store: Store, destination: Destination, each: Selection, as_json: bool) -> None:
    live, refused = roll_back(store, destination, each.index)
    restored = {"index": each.index, "live": live, "refused": refused}
    _show(as_json, restored, f"index {each.index}: readers and rows have {live} again")
    if refused:
        click.echo(
            f"it had refused {logs.rows(refused)} since the reindex: 'outbox-relay reindex --entity "
            f"{each.entities[0].name} --drop-old', and then the same without --drop-old, brings them in",
            err=True,
        )


def _dry_run(store: Store, selections: Iterable[Selection], as_json: bool) -> None:
    for each in selections:
        rows, names = rows_of(store, each), [entity.name for entity in each.entities]
        counted = {"index": each.index, "entities": names, "rows": rows, "in_place": each.in_place}
        where = "in place" if each.in_place else "into a new index"
        _show(as_json, counted, f"index {each.index}: {logs.rows(rows)} of {', '.join(names)}, {where}")


def _show(as_json: bool, answer: dict[str, Any], text: str) -> None:
    click.echo(json.dumps(answer) if as_json else text)


def _list(store: Store, as_json: bool) -> None:
    found = jobs.every(store)
    if as_json:
        click.echo(json.dumps([job_facts(store, job) for job in found]))
        return
    for job in found:
        click.echo(job_line(store, job))
    if not found:
        click.echo("no reindex so far")


def _follow(store: Store, steps: Generator[Progress, None, None], index: str, as_json: bool) -> None:
    """Follow a job to its end."""
    began = time.monotonic()
    bar = not as_json and sys.stderr.isatty()
    with closing(steps):  # interrupted, the job is released while the database is open
        last = _with_bar(steps) if bar else _with_lines(steps, as_json)
    job = jobs.find(store, last.job) if last else None
    if job is None:
        return
    if as_json:
        click.echo(json.dumps(job_facts(store, job)))
    else:
        where = f"readers get {job.new_index}" if job.new_index else f"written to {job.old_index}"
        removed = f", {job.removed:,} removed" if job.removed else ""
        seconds = time.monotonic() - began
        click.echo(f"index {index}: {job.documents:,} documents in {seconds:,.1f} s{removed}; {where}")
        if kept := jobs.kept_index(store, job.index_name):
            click.echo(f"{kept[0]} is kept: '--rollback' returns to it, '--drop-old' removes it")
    if job.refused:
        documents = "1 document" if job.refused == 1 else f"{job.refused:,} documents"
        raise ReindexFailed(f"{documents} could not be written; the warnings above name the first")


def _with_lines(steps: Iterator[Progress], as_json: bool) -> Progress | None:
    last, shown_at, phase = None, 0.0, ""
    for last in steps:
        if last.phase == phase and time.monotonic() - shown_at < LINE_EVERY_S:
            continue
        shown_at, phase = time.monotonic(), last.phase
        click.echo(json.dumps(asdict(last)) if as_json else _line(last), err=not as_json)
    return last


def _line(at: Progress) -> str:
    text = f"{at.index}: {at.phase} {at.rows:,} of {at.total:,}"
    if at.rate:
        text += f", {at.rate:,.0f}/s"
    if at.eta is not None:
        text += f", {logs.span(at.eta)} left"
    return logs.safe(text + (f" ({at.note})" if at.note else ""))


def _with_bar(steps: Iterator[Progress]) -> Progress | None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    last = None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None, rate="")
        for last in steps:
            rate = f"{last.rate:,.0f}/s" if last.rate else last.note
            if last.eta is not None:
                rate += f", {logs.span(last.eta)} left"
            described = f"{last.index} {last.phase}"
            bar.update(task, description=described, completed=last.rows, total=last.total, rate=rate)
    return last


commands = [command]
