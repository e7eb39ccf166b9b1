"""Every exception that outbox-relay raises on purpose.

    OutboxError
    ├── InvalidInput            what the application passed cannot be stored, or searched for; nothing was
    │   ├── InvalidDocument     … the document: NaN, NUL, lone surrogate, too large, not serialisable
    │   └── InvalidName         … the document id, index name or tenant id
    ├── ConfigurationError      a setting is missing or wrong, or the database is of another kind
    │   ├── SchemaError         the outbox tables are missing or at another revision
    │   ├── FailedOver          the database server goes on from an earlier moment: `outbox-relay epoch advance`
    │   └── UnknownTenant       no row and no document is of the tenant that was asked for
    ├── SyncFailed              `wait_until_synced`: a row is dead, or there is no committed transaction to wait for
    │   └── SyncTimeout         … or not delivered in time
    ├── ReindexFailed           a reindex did not end as it was asked to; the text says what readers get
    ├── DatabaseUnavailable     the database cannot be opened, is locked for too long or is full
    └── DestinationError        the search engine refused or did not answer a search or an administrative call
        ├── IndexMissing        … a search: there is no such index (yet)
        └── DestinationUnanswered   … it did not answer in time, or not now: what was asked may be done all the same

The text of each says what happened, names the value (shortened) and ends with what to do. A destination that
does not answer, or that refuses a document, raises nothing: that is an `Outcome` (see `outbox.destinations.base`).
"""

import shlex
from pathlib import Path
from typing import ClassVar


class OutboxError(Exception):
    """The root: catch this to catch everything that the outbox raises on purpose."""

    exit_code: ClassVar[int] = 1
    """Of a command that it ends: 2 for what must be corrected first."""


class InvalidInput(OutboxError, ValueError):
    """What the application passed cannot be stored, or searched for. Nothing was, the session is still usable."""


class InvalidDocument(InvalidInput):
    """The document cannot become JSON that Elasticsearch reads, or it is too large."""


class InvalidName(InvalidInput):
    """The document id, index name or tenant id is not one that Elasticsearch accepts."""


class ConfigurationError(OutboxError):
    """A setting is missing or wrong."""

    exit_code = 2


class SchemaError(ConfigurationError):
    """The outbox tables are missing, or at another revision than this version needs."""


class FailedOver(ConfigurationError):
    """The database server has gone on from an earlier moment, and may lack what was committed last."""


class UnknownTenant(ConfigurationError):
    """No row and no document is of the tenant that was asked for."""

    exit_code = 1


class ReindexFailed(OutboxError):
    """A reindex did not end as it was asked to. The text says what readers get: nearly always what they got before."""


class DatabaseUnavailable(OutboxError):
    """The database cannot be opened, stayed locked for too long, or has no room left."""

    exit_code = 2


class SyncFailed(OutboxError):
    """What the transaction wrote does not reach the destination by waiting: a row is dead, or nothing is committed."""


class SyncTimeout(SyncFailed, TimeoutError):
    """What the transaction wrote was not delivered in time. It still will be."""


class DestinationError(OutboxError):
    """A search or an administrative call failed: the search engine refused, or it did not answer."""


class IndexMissing(DestinationError):
    """There is no such index: its name is misspelt, or nothing was delivered to it yet."""


class DestinationUnanswered(DestinationError):
    """A call to the search engine got no answer in time, or "not now" as one: it may be carried out all the same."""


def shortened(value: object, limit: int = 60) -> str:
    """`repr(value)`, cut to `limit` characters, for use in error texts."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def in_one_line(value: object) -> str:
    """Its text, for a line of a log: a server may say something in several."""
    return " ".join(str(value).split())


def install_command(extra: str) -> str:
    """The command that brings an extra. A checkout is named by its path: pip may know no package of that name."""
    checkout = Path(__file__).parents[1]
    if (checkout / "pyproject.toml").exists():
        return f"pip install -e {shlex.quote(f'{checkout}[{extra}]')}"
    return f"pip install 'outbox-relay[{extra}]'"
