"""The six steps of a rebuild, each a function of the work on one job.

Each step is entered by a commit, so that a process that takes over a job resumes it where it was:

    create   the new physical index, without readers; then commit: rows go to both
    scan     all rows in the order of their key; documents carry the watermark, a version drawn with that commit:
             what is claimed before is in what the scan reads, and what is claimed later has a higher one
    sweep    remove what the new index holds and the database does not
    check    restore the settings, count, compare a sample
    swap     readers get the new index, in one step; then commit: rows go to it
    drop     the old one, once no relay sends to it any more

In place there is no new index: the documents go into the live one, and it ends after the sweep.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, TypeVar

from loguru import logger

from outbox.destinations.base import Stored, portions
from outbox.destinations.kept import Kept
from outbox.destinations.same import is_same
from outbox.entities import loader, neighbours
from outbox.entities.entity import Entity
from outbox.entities.loader import Row
from outbox.entities.maker import LoadFailed
from outbox.entities.spelling import tenant_texts
from outbox.errors import DestinationError, shortened
from outbox.reindex.work import LOOK_EVERY_S, Progress, Work, fields, until_claims_end
from outbox.reindex.writer import Pace, Page, Portion, Writer
from outbox.store import jobs
from outbox.store.models import EPOCH_STEP, JobState

PAGE_ROWS: Final = 2_000
GENTLE_ROWS: Final = 125
LISTED_ROWS: Final = 5_000
FEWEST_LISTED: Final = 100
PAGES_A_SECOND: Final = 10  # at least, where a rate is asked for: live rows find a gap
SAMPLE: Final = 100
SAMPLE_LOOKS: Final = 10
COMPARED_AT_ONCE: Final = 10
SWAPS: Final = 3

T = TypeVar("T")


# -- create ---------------------------------------------------------------------------------------------------------


def create(work: Work) -> Iterator[Progress]:
    """Make the new index, and have rows go to both; in place, only draw the watermark."""
    job, destination, entity = work.job, work.destination, work.selection.entities[0].name
    yield work.progress()
    if job.new_index is None:
        highest = work.ask(lambda: destination.highest_version(job.old_index))
        epoch, token = divmod(highest, EPOCH_STEP)
        if epoch > (current := work.store.control().epoch):
            raise DestinationError(
                f"index {job.old_index} holds version {highest}, of a later epoch: run 'outbox-relay epoch advance'"
            )
        # What was changed by hand may have a version above any that was drawn.
        work.commit(jobs.draw_watermark, above=token if epoch == current else 0, entity=entity)
        return
    target = job.new_index
    mappings, settings = work.registry.index_options(job.index_name) or ({}, {})

    def make() -> None:
        work.refuse_if_read(target)  # the tables are a backup's: the job has ended since
        destination.drop_index(target)  # left by a process that was killed here; no row goes to it so far
        destination.create_index(target, mappings, settings)

    work.ask(make)
    work.commit(jobs.send_rows_to_both, entity=entity)


# -- scan -----------------------------------------------------------------------------------------------------------


class _Mark(NamedTuple):
    """How far the scan is once a page of it is settled."""

    position: str
    read: int
    unmade: list[str]  # rows of which no document can be made, each as one line


def scan(work: Work) -> Iterator[Progress]:
    """Write the document of every row. The position in the job is that up to which all pages are settled."""
    at: dict[str, Any] = json.loads(work.job.position) if work.job.position else {}
    entities = work.selection.entities
    first = next((number for number, entity in enumerate(entities) if entity.name == at.get("entity")), 0)
    read = int(at.get("read", 0))
    pace, rate_since = Pace(work.rate or math.inf), (time.monotonic(), work.job.documents)
    work.store.dialect.until_announced_ends(work.store.run)
    with work.writer() as writer:
        for entity in entities[first:]:
            after: list[str] | None = at.get("after") if entity.name == at.get("entity") else None
            part = work.selection.part_of(entity)
            others = neighbours.above(entity, work.registry.of_index(work.job.index_name))
            portion, began = Portion(), time.monotonic()
            while rows := loader.page(
                work.store.connection, entity, part, after, min(portion.rows, _page_rows(work, writer))
            ):
                read, after = read + len(rows), rows[-1].key
                its_own = _without_those_of(work, rows, others)
                operations = work.operations(its_own)
                now = time.monotonic()
                portion.took(len(rows), now - began)
                work.note()
                work.sleep(pace.turn(len(operations), now) - now)
                position = json.dumps({"entity": entity.name, "after": after, "read": read})
                writer.send(operations, _Mark(position, read, _unmade(its_own)))
                yield from _settled(work, writer.settled(), *rate_since)
                began = time.monotonic()
        yield from _settled(work, writer.drain(), *rate_since)
    work.note_now(phase="sweep")


def _without_those_of(work: Work, rows: list[Row], others: Sequence[Entity]) -> list[Row]:
    """The rows whose documents none of the others makes: entities that come before theirs, see `of_index`."""
    for other in others:
        places = [row.place[:2] for row in rows if row.place]
        held = loader.holders(work.store.connection, other, places)
        rows = [row for row in rows if not (row.place and row.place[:2] in held)]
    return rows


def _page_rows(work: Work, writer: Writer[_Mark]) -> int:
    """How many rows to read next. Few, and one request at a time, while rows flow: these wait behind ours."""
    writer.gentle = work.traffic.flows(work.store.highest_id(), time.monotonic())
    most = min(PAGE_ROWS, GENTLE_ROWS) if writer.gentle else PAGE_ROWS
    return most if work.rate is None else max(1, min(most, int(work.rate / PAGES_A_SECOND)))


def _unmade(rows: Sequence[Row]) -> list[str]:
    return [
        f"row {'|'.join(row.key)}: {row.document.error_type}: {row.document.error}"
        for row in rows
        if isinstance(row.document, LoadFailed)
    ]


def _settled(work: Work, pages: Iterator[Page[_Mark]], began: float, before: int) -> Iterator[Progress]:
    """Record what has been settled of the scan: never a page before those that were read earlier."""
    for page in pages:
        refused = work.refuse([*page.mark.unmade, *page.refused])
        work.note(
            position=page.mark.position,
            documents=work.job.documents + page.documents - len(page.refused),
            refused=work.job.refused + refused,
        )
        rate = (work.job.documents - before) / max(time.monotonic() - began, 1e-9)
        yield work.progress(rows=page.mark.read, rate=rate)


# -- sweep ----------------------------------------------------------------------------------------------------------


def sweep(work: Work) -> Iterator[Progress]:
    """Remove documents from the index that the database does not have. In place, this is the last step."""
    tenant, removed, size = work.selection.tenant, work.job.removed, LISTED_ROWS
    tenants = None if tenant is None else tenant_texts(tenant, work.registry.of_index(work.job.index_name))
    portion = Portion()
    while True:
        if work.job.new_index is None and not _readers(work):
            raise DestinationError(f"index {work.job.old_index} is lost, or its alias {work.job.index_name}")
        yield work.progress()
        listed = 0
        try:
            # The index first, then the database: what comes into both meanwhile is not taken for superfluous.
            for page in _ahead(work.destination.pages(work.job.target, size, tenants=tenants is not None)):
                older = [
                    document_id
                    for document_id, found in page.items()
                    if found.version <= (work.job.watermark or 0) and (tenants is None or found.tenant_id in tenants)
                ]
                if gone := _absent(work, older, portion):
                    # Recorded before it is done: after a kill in between rather too many than too few.
                    removed += len(gone)
                    work.note_now(removed=removed)
                    work.refuse(work.write([work.operation(each, None) for each in gone]))
                work.note()
                listed += len(page)
                yield work.progress(rows=listed, total=max(work.job.total, listed))
            break
        except DestinationError as error:
            work.wait_if_away(error)
            size = max(size // 2, FEWEST_LISTED)  # the cluster may have given up waiting for the next page
    if work.job.new_index is None:
        work.ask(lambda: work.destination.refresh(work.job.target))
        work.end(JobState.DONE)
    else:
        work.note_now(phase="check")


def _ahead(pages: Iterator[T]) -> Iterator[T]:
    """Each page while the next one is fetched."""
    with ThreadPoolExecutor(1, "outbox-list") as pool:
        fetched = pool.submit(next, pages, None)
        while (page := fetched.result()) is not None:
            fetched = pool.submit(next, pages, None)
            yield page


def _absent(work: Work, document_ids: Sequence[str], portion: Portion) -> list[str]:
    """Documents for which no entity of the index has a row, whatever its tenant."""
    absent: list[str] = []
    while document_ids:
        some, document_ids, began = document_ids[: portion.rows], document_ids[portion.rows :], time.monotonic()
        places = [(work.job.index_name, each) for each in some]
        for entity in work.registry.of_index(work.job.index_name):
            held = loader.holders(work.store.connection, entity, places)
            places = [place for place in places if place not in held]
        absent += [document_id for _, document_id in places]
        portion.took(len(some), time.monotonic() - began)
        work.note()
    return absent


# -- check ----------------------------------------------------------------------------------------------------------


def check(work: Work) -> Iterator[Progress]:
    """Give the new index its settings back, and refuse to swap in one that is not what the database says."""
    yield work.progress()
    target, destination = work.job.target, work.destination
    _, settings = work.registry.index_options(work.job.index_name) or ({}, {})
    work.ask(lambda: destination.finish_index(target, settings))
    held = work.ask(lambda: destination.count(target))
    expected = work.job.documents - work.job.removed
    since = work.store.highest_id() - (work.job.last_id or 0)
    if held + since < expected:
        raise DestinationError(f"index {target} holds {held:,} documents, {expected:,} were written to it")
    if differing := work.ask(lambda: _differing(work)):
        raise DestinationError(f"index {target} differs from the database in {shortened(differing[0])}")
    work.note_now(phase="swap")


def _differing(work: Work) -> list[str]:
    """Of a sample, the documents that are not what the database says, although no row of theirs is under way."""
    target, connection = work.job.target, work.store.connection
    page = next(work.destination.pages(target, PAGE_ROWS), {})
    suspects = set(random.sample(sorted(page), min(SAMPLE, len(page))))
    for entity in work.selection.entities:
        part = work.selection.part_of(entity)
        suspects |= {each.document_id for each in work.operations(loader.page(connection, entity, part, None, SAMPLE))}
    for look in range(SAMPLE_LOOKS):
        if look:
            work.sleep(2 * LOOK_EVERY_S)
        kept = work.destination.kept(target)
        if kept.compared_without and not look:
            logger.warning("{job}: {without}", without=kept.compared_without, **fields(work.job))
        parts = portions(sorted(suspects), lambda _: 1, COMPARED_AT_ONCE)
        suspects = {each for some in parts for each in _unlike(work, some, kept)}
        if not suspects:
            break
    return sorted(suspects)


def _unlike(work: Work, document_ids: Sequence[str], kept: Kept) -> set[str]:
    """Those of the documents that differ at one look. A few at a time, since they may be large."""
    made, stored = _made(work, document_ids), work.destination.read(work.job.target, document_ids)
    unsettled = jobs.unsettled(work.store, work.job.index_name, document_ids)
    return {
        each
        for each in set(document_ids) - unsettled
        if not isinstance(document := made[each], LoadFailed) and not _same(document, stored.get(each), kept)
    }


def _same(document: bytes | None, stored: Stored | None, kept: Kept) -> bool:
    if document is None or stored is None:
        return document is None and stored is None
    return is_same(document, stored.source, kept)


def _made(work: Work, document_ids: Sequence[str]) -> Mapping[str, bytes | LoadFailed | None]:
    """What the database says now of documents of the index, whichever of its entities has a row for them."""
    name = work.job.index_name
    places = [(name, document_id) for document_id in document_ids]
    made = loader.load_first(work.store.connection, work.registry.of_index(name), places)
    return {document_id: document for (_, document_id), (_, document) in made.items()}


# -- swap, drop -----------------------------------------------------------------------------------------------------


def swap(work: Work) -> Iterator[Progress]:
    """Readers get the new index; then rows go to it. Where the old one is lost, rows first."""
    yield work.progress()
    job, destination = work.job, work.destination
    name, new = job.index_name, job.new_index or ""
    old = job.old_index if _readers(work) else None
    if old is None:
        # Whoever finds that rows go here leaves the index in its place.
        exists = work.ask(lambda: destination.inspect_index(name, job.old_index)).exists
        work.commit(jobs.send_rows_to_new, phase="swap", keep_old=bool(job.keep_old) and exists)
        text = "{job}: index {live} is lost, readers and rows get {new} now"
        logger.warning(text, live=job.old_index, new=new, **fields(job))

    def swapped() -> bool:
        return _readers(work) == (new,)

    for attempt in range(1, SWAPS + 1):
        if work.ask(swapped):
            break  # before: a lost answer, or a kill
        try:
            destination.swap(name, old, new, adopt=bool(job.adopt and old))
        except DestinationError:
            # It may have been made all the same, or be made yet: the next one is answered after it.
            work.sleep(1)
            if attempt == SWAPS and not work.ask(swapped):
                raise
    work.commit(jobs.send_rows_to_new, phase="drop", keep_old=bool(job.keep_old and old))


def _readers(work: Work) -> tuple[str, ...]:
    """The physical indexes that the name of the index leads to."""
    return work.ask(lambda: work.destination.inspect_index(work.job.index_name, work.job.target)).readers


def drop(work: Work) -> Iterator[Progress]:
    """Remove the old index, unless it is kept or has given its name away."""
    yield work.progress()
    if not work.job.keep_old and work.job.old_index != work.job.index_name:
        for _ in until_claims_end(work.store, work.job.index_name):
            yield work.progress(note=f"requests to {work.job.old_index} are still under way")
            work.note()
        work.ask(lambda: work.destination.drop_index(work.job.old_index))
    work.end(JobState.DONE)


STEPS: Final[Mapping[str, Callable[[Work], Iterator[Progress]]]] = {
    step.__name__: step for step in (create, scan, sweep, check, swap, drop)
}
"""The steps by the name that a job has for the one it is at, in their order."""
