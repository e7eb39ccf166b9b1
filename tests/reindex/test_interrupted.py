"""A job that is cancelled, left, taken over or restored from a backup does no harm, and can be finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from outbox import EntityRegistry
from outbox.errors import DatabaseUnavailable, DestinationError, ReindexFailed
from outbox.maintenance.scheduler import Maintenance
from outbox.reindex.reindexer import Reindexer, reindex
from outbox.reindex.selection import Selection
from outbox.store import jobs, operators
from outbox.store.jobs import Job, JobLost
from outbox.store.models import JobState, now_ms
from outbox.store.store import Store
from tests.reindex.world import FIRST, PHASES, SECOND, Backup, World
from tests.support.models import Company, Contact
from tests.support.outbox import settings


def test_swap_that_comes_when_the_job_has_failed_is_taken_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.filled(2)
    swap = world.place.destination.swap

    def refused(*_: str, **__: Any) -> None:
        raise DestinationError("not now")

    def wait(*_: Any) -> Iterator[None]:
        swap("contacts", FIRST, SECOND)
        monkeypatch.setattr(world.place.destination, "swap", swap)
        yield

    monkeypatch.setattr(world.place.destination, "swap", refused)
    monkeypatch.setattr("outbox.reindex.reindexer.until_claims_end", wait)
    with pytest.raises(ReindexFailed, match="not now"):
        world.rebuild()
    world.save(1, "after")
    world.assert_in_step(FIRST)
    assert world.place.indexes() == [FIRST]


def test_cancelled_job_leaves_the_index_as_it_was(world: World) -> None:
    world.filled(3)
    steps = world.steps({})
    while next(steps).phase != "sweep":
        world.save(1, "live")
    assert world.store.routes()[1] == {"contacts": (SECOND,)}
    steps.close()
    assert "is cancelled" in world.reindexer(registry=EntityRegistry()).cancel(world.job.id)
    assert world.store.routes()[1] == {}
    world.assert_in_step(FIRST)
    assert world.place.indexes() == [FIRST]
    with pytest.raises(ReindexFailed, match="has ended already: cancelled"):
        world.reindexer().cancel(world.job.id)
    world.rebuild()
    world.assert_in_step("contacts-000003")


def test_index_that_cannot_be_removed_ends_the_cancelling_which_can_be_finished(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.filled(3)
    steps = world.steps({})
    while next(steps).phase != "sweep":
        pass
    steps.close()
    with monkeypatch.context() as patched:

        def refused(target: str) -> None:
            raise DestinationError(f"index {target} is being snapshotted")

        patched.setattr(world.place.destination, "drop_index", refused)
        with pytest.raises(ReindexFailed, match=r"contacts-000002 is still to be removed .*snapshotted.*--resume"):
            world.reindexer().cancel(world.job.id)
    assert world.job.state == "cancelling"
    with pytest.raises(ReindexFailed, match=r"cancelled by .*; the index is as it was"):
        list(world.reindexer().resume(world.job))
    assert (world.job.state, world.place.indexes()) == ("cancelled", [FIRST])
    world.assert_in_step(FIRST)


def test_job_that_is_cancelled_while_somebody_works_on_it_is_cleaned_up_by_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.reindex.work.NOTE_EVERY_MS", 0)
    world.filled(3)
    steps = world.steps({})
    next(steps)
    while next(steps).phase != "sweep":
        pass
    jobs.stop(world.store, world.job, JobState.CANCELLING, "cancelled", now_ms(), own=False)
    world.save(1, "live")
    with pytest.raises(ReindexFailed, match="cancelled"):
        list(steps)
    assert world.job.state == "cancelled"
    world.assert_in_step(FIRST)
    assert world.place.indexes() == [FIRST]


@pytest.mark.parametrize("phase", PHASES)
def test_job_that_was_left_at_any_step_is_gone_on_with(
    world: World, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.reindex.steps.PAGE_ROWS", 2)
    world.filled(7)
    steps = world.steps({})
    while next(steps).phase != phase:
        pass
    steps.close()
    world.save(1, "meanwhile")
    world.delete(2)
    world.deliver()
    assert jobs.is_abandoned(world.store, world.job, now_ms())
    if phase not in ("swap", "drop"):
        with pytest.raises(ReindexFailed, match="was left unfinished, and was asked for something else"):
            world.rebuild(keep_old=True)
    world.rebuild()
    assert (world.job.id, world.job.state) == (1, "done")
    world.assert_in_step()
    assert world.place.indexes() == [SECOND]


@pytest.mark.sqlite
def test_rows_do_not_go_to_an_index_whose_watermark_is_not_fixed(world: World) -> None:
    """Whoever takes over at the step `create` makes the index anew: no relay may have begun to write there."""
    world.filled(3)
    world.outbox.raw(
        "CREATE TRIGGER killed BEFORE UPDATE OF watermark ON outbox_reindex_jobs BEGIN SELECT raise(ROLLBACK, 'x'); END"
    )
    with pytest.raises(IntegrityError):
        world.rebuild()
    assert (world.job.state, world.job.phase) == ("running", "create")
    assert world.store.routes()[1] == {}
    world.outbox.raw("DROP TRIGGER killed")
    world.save(1, "meanwhile")
    world.deliver()
    list(world.reindexer().resume(world.job))
    assert world.job.state == "done"
    world.assert_in_step()


def test_relay_that_met_a_locked_database_goes_on_with_the_reindex_later(world: World) -> None:
    world.filled(3)
    steps = world.steps({})
    while next(steps).phase != "scan":
        pass
    steps.close()
    jobs.take(world.store, world.job, "a process that was killed", now_ms() - 1_000, 1)
    locked = [DatabaseUnavailable("database is locked")]

    def interrupt() -> None:
        if locked:
            raise locked.pop()

    def reindexer(store: Store, _: Callable[[], None]) -> Reindexer:
        return Reindexer(store, world.place.destination, world.registry, interrupt=interrupt)

    maintenance = Maintenance(world.outbox.engine, 1, settings(), list, reindexer=reindexer)
    maintenance.reindex()
    assert (world.job.state, world.job.phase, locked) == ("running", "scan", [])
    maintenance.reindex()
    assert world.job.state == "done"
    world.assert_in_step()


def test_job_that_ended_while_the_relay_was_at_another_is_no_news(world: World, said: list[str]) -> None:
    world.registry.add(Company, index="companies", fields=["name"])
    world.filled(3)
    for name in ("contacts", "companies"):
        begun = {"tenant": None, "since": None, "keep_old": False, "adopt": False, "total": 3}
        killed = {"holder": "a process that was killed", "now": 0, "lease_ms": 1}
        jobs.begin(world.store, name, f"{name}-000001", f"{name}-000002", **begun, **killed)  # type: ignore[arg-type]

    def reindexer(store: Store, interrupt: Callable[[], None]) -> Reindexer:
        world.outbox.raw("UPDATE outbox_reindex_jobs SET state = 'cancelled' WHERE id = 2")
        return Reindexer(store, world.place.destination, world.registry, interrupt=interrupt)

    Maintenance(world.outbox.engine, 1, settings(), list, reindexer=reindexer).reindex()
    assert [job.state for job in jobs.every(world.store)] == ["done", "cancelled"]
    assert [line for line in said if "companies" in line] == []
    assert [line for line in said if "reindex 1 of contacts (into contacts-000002) is done" in line]


def restored_from_a_backup_at(world: World, phase: str) -> Job:
    """The rebuild has come to its end since, so that readers have its new index. Returns the job as it is again."""
    backup = Backup(world.outbox)
    world.filled(3).rebuild({phase: backup.take})
    assert world.job.state == "done"
    world.save(1, "after the backup")
    world.assert_in_step()
    backup.restore()
    assert (world.job.state, world.job.phase) == ("running", phase)
    return world.job


@pytest.mark.sqlite
@pytest.mark.parametrize("phase", ["create", "scan"])
def test_job_that_is_open_in_a_restored_backup_takes_no_index_from_readers(world: World, phase: str) -> None:
    job = restored_from_a_backup_at(world, phase)
    held = world.place.documents("contacts")
    for _ in range(2):
        with pytest.raises(ReindexFailed, match="run 'outbox-relay epoch advance'"):
            list(world.reindexer().resume(world.job))
        assert world.job.id == job.id
        assert world.readers() == (SECOND,)
        assert world.place.documents("contacts") == held


@pytest.mark.sqlite
@pytest.mark.parametrize("phase", ["create", "scan"])
def test_epoch_that_is_advanced_after_a_restore_ends_the_jobs_of_the_backup(world: World, phase: str) -> None:
    job = restored_from_a_backup_at(world, phase)
    operators.advance_epoch(world.store, 1, now_ms())
    assert (world.job.id, world.job.state) == (job.id, "failed")
    assert "the epoch was advanced" in (world.job.error or "")
    assert world.store.routes()[1] == {}
    assert jobs.orphans(world.store, now_ms() + 10**9) == []
    with pytest.raises(ReindexFailed):
        list(world.reindexer().resume(job))  # whoever has seen it before
    assert world.readers() == (SECOND,)


@pytest.mark.parametrize("refused", [False, True])
def test_reindex_whose_job_was_ended_by_an_epoch_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    def advance(*_: Any) -> None:
        operators.advance_epoch(world.store, 1, now_ms())
        if refused:
            raise DestinationError("refused at the same time")

    world.filled(3)
    monkeypatch.setattr(world.place.destination, "finish_index", advance)
    with pytest.raises(ReindexFailed, match="the epoch was advanced"):
        world.rebuild()
    world.assert_in_step(FIRST)


def test_second_reindex_of_an_index_is_refused_and_names_the_running_one(world: World) -> None:
    world.filled(2)
    steps = world.steps({})
    next(steps)
    next(steps)
    with pytest.raises(ReindexFailed, match=r"reindex 1 of contacts .* is running already, at step '\w+', by .*pid"):
        world.rebuild()
    list(steps)
    world.assert_in_step()


def test_lease_is_kept_while_documents_take_long_to_make(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    began, passed, late = now_ms(), 0, []
    monkeypatch.setattr("outbox.reindex.work.now_ms", lambda: began + passed)
    monkeypatch.setattr("outbox.reindex.steps.time", SimpleNamespace(monotonic=lambda: passed / 1_000))
    world.filled(200)
    looking = Store(world.outbox.engine)

    def when(contact: Contact) -> bool:
        nonlocal passed
        passed += 1_000  # and it is asked in the scan and in the sweep
        if began + passed > (jobs.every(looking)[-1].lease_expires_at or 0):
            late.append(contact.id)
        return not contact.archived

    registry = EntityRegistry()
    registry.add(Contact, index="contacts", fields=["name"], tenant="tenant", tenancy="prefixed", when=when)
    list(reindex(world.store, world.place.destination, registry, entities=["contacts"], in_place=True))
    looking.close()
    assert passed == 400_000
    assert not late


def test_process_whose_job_was_taken_over_does_no_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.reindex.work.NOTE_EVERY_MS", 0)
    world.filled(2)
    stalled = world.steps({})
    while next(stalled).phase != "swap":
        pass
    lost = world.job
    other = Reindexer(world.store, world.place.destination, world.registry)
    monkeypatch.setattr(jobs, "is_abandoned", lambda *_: True)  # its lease has ended
    for _ in other.run(Selection("contacts", ())):
        world.deliver()
    with pytest.raises(JobLost):
        jobs.update(world.store, lost, now_ms(), 1_000)
    world.rebuild()  # and one more, so that there is something to swap wrongly
    world.assert_in_step("contacts-000003")
    list(stalled)
    assert [job.state for job in jobs.every(world.store)] == ["done", "done"]
    assert world.place.indexes() == ["contacts-000003"]
    world.assert_in_step("contacts-000003")
