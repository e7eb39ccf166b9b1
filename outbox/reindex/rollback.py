"""Back to the index before the last rebuild, where `--keep-old` kept it; or away with it."""

from __future__ import annotations

from outbox.destinations.base import Destination
from outbox.errors import DestinationError, ReindexFailed
from outbox.reindex.work import until_claims_end
from outbox.store import jobs
from outbox.store.store import Store


def roll_back(store: Store, destination: Destination, index: str) -> tuple[str, int]:
    """Give readers and rows the kept old index back; the other one is kept then.

    Returns its name, and how many documents it refused since the rebuild. Raises `ReindexFailed` if none is kept.
    """
    old, refused = _kept(store, index)
    live = store.targets()[index]
    if not destination.inspect_index(index, old).exists:
        raise ReindexFailed(f"{old}, which was kept, is lost: there is no way back; --drop-old forgets it")
    facts = destination.inspect_index(index, live)
    if facts.readers != (old,):  # unless a rollback was killed in between
        destination.refresh(old)
        destination.swap(index, live if facts.readers else None, old)
    jobs.exchange(store, index, live, old)
    if not facts.exists:  # it is lost, so that there is nothing to keep
        jobs.drop_kept(store, index, live)
    return old, refused


def drop_old(store: Store, destination: Destination, index: str) -> str:
    """Remove the kept old index. Returns its name. Raises `ReindexFailed` if none is kept, or it cannot be removed."""
    old, _ = _kept(store, index)
    if destination.inspect_index(index, old).readers == (old,):
        raise ReindexFailed(
            f"readers of {index} get {old}, since a rollback was interrupted: end it first, with 'outbox-relay reindex "
            "--rollback'"
        )
    jobs.drop_kept(store, index, old)
    for _ in until_claims_end(store, index):
        pass
    try:
        destination.drop_index(old)
    except DestinationError as error:
        raise ReindexFailed(
            f"index {old} gets no rows any more, but is not removed ({error}): remove it in the destination"
        ) from error
    return old


def _kept(store: Store, index: str) -> tuple[str, int]:
    if job := jobs.open_job(store, index):
        raise ReindexFailed(f"{job} has not ended; see 'outbox-relay reindex --list'")
    kept = jobs.kept_index(store, index)
    if kept is None:
        raise ReindexFailed(f"index {index} keeps no old one: only 'outbox-relay reindex --keep-old' leaves one")
    return kept
