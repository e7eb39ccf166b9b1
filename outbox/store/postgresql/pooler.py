"""Whether a pooler gives one session of the server to several clients, as PgBouncer does in transaction mode.

Locks and temporary tables belong to a session. Of a relay behind such a pooler they would be anybody's, and stay when
it is killed: nobody would be told, and what it held would wait for the end of its lease.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

from outbox.errors import ConfigurationError

LOOKS: Final = 2
"""Others may use the pooler at the same moment, and have the session that was looked for."""

SHARED: Final = (
    "is reached through a connection pooler that gives a session of the server to several clients in turn, such as "
    "PgBouncer in transaction mode"
)
REMEDY: Final = "have OUTBOX_DATABASE_URL name the server itself; applications may use the pooler"

_UNSUPPORTED: Final = "unsupported startup parameter"


def refusal(address: str, found: str = SHARED) -> ConfigurationError:
    """What ends a process of ours."""
    return ConfigurationError(f"database {address} {found}; {REMEDY}")


def explained(error: Exception, address: str) -> Exception:
    """The same, unless it says that a pooler does not let a session begin with settings of its own."""
    if _UNSUPPORTED not in str(error):
        return error
    return refusal(address, "is reached through a connection pooler that refuses the settings of a relay's session")


def shares_sessions(driver: Any, connect: Callable[[], Any]) -> bool:
    """Whether the session of this connection of psycopg is that of others as well. `connect` brings another one.

    Only a pooler tells a client of another process than the one that works for it. It may do so as well where each
    client has a session to itself; so others are asked to begin a transaction, which takes a session from the rest.
    """
    if driver.info.backend_pid == _process(driver):
        return False
    with ExitStack() as stack:
        for _ in range(LOOKS):
            before = _process(driver)
            other = connect()
            stack.callback(other.close)
            if _process(other, ended=False) == before or _process(driver) != before:
                return True
    return False


def _process(driver: Any, *, ended: bool = True) -> int:
    """The process of the server that works for the connection, whose transaction is left open unless `ended`."""
    with driver.cursor() as cursor:
        ((pid,),) = cursor.execute("SELECT pg_backend_pid()").fetchall()
    if ended:
        driver.rollback()
    return int(pid)
