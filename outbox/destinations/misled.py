"""Pure: what to do where an index is gone, or its name leads readers elsewhere than rows go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from outbox.destinations.base import Outcome, OutcomeKind

REBUILD: Final = "run 'outbox-relay reindex --all', which makes it from the database"


def remedy(name: str, target: str, *, exists: bool, readers: Sequence[str]) -> str:
    """What mends it. `exists`: whether the physical index `target` is there; `readers`: where `name` leads."""
    if not readers:
        again = f", or make alias {name} point to {target} again (POST _aliases)" if exists else ""
        return REBUILD + again
    if len(readers) == 1:
        back = f"; or make alias {name} point to {target} again (POST _aliases)" if exists else ""
        return f"run 'outbox-relay epoch advance': rows go to {readers[0]} then, as its readers do{back}"
    return f"make alias {name} point to {target if exists else 'one index'} and to nothing else (POST _aliases)"


def outcome(name: str, target: str, *, exists: bool, readers: Sequence[str]) -> Outcome:
    """What becomes of rows that go there: they wait, with the remedy in the reason."""
    what = remedy(name, target, exists=exists, readers=readers)
    if not exists:
        return Outcome(OutcomeKind.BLOCKED, "index_not_found_exception", f"index {target} is missing: {what}")
    why = f"alias {name} does not point to index {target}: {what}"
    return Outcome(OutcomeKind.BLOCKED, "alias_not_found_exception", why)


def made_anew(target: str, gc_deletes: str) -> Outcome:
    """What becomes of rows of an index that has not got the setting that every index gets when it is prepared."""
    why = (
        f"index {target} has no setting index.gc_deletes: it was deleted, and made anew by the cluster without its "
        f"mappings; {REBUILD}. If only the setting was removed, put it back: "
        f'PUT {target}/_settings {{"index.gc_deletes": "{gc_deletes}"}}'
    )
    return Outcome(OutcomeKind.BLOCKED, "index_not_found_exception", why)
