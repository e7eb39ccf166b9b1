"""Which sessions are taken, and what to write instead of all that is none."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session, scoped_session, sessionmaker

from outbox.errors import InvalidInput


def require_session(given: object, what: str, call: str) -> None:
    """Raises `InvalidInput`, with what to write, unless it is a `Session` or a `scoped_session`.

    `what` needs one, as in `call` with a `session`. Whatever behaves as a session is taken as one.
    """
    if isinstance(given, (Session, scoped_session)) or (
        hasattr(given, "get_nested_transaction") and not isinstance(given, type) and not hasattr(given, "sync_session")
    ):
        return
    name = given.__name__ if isinstance(given, type) else type(given).__name__
    raise InvalidInput(f"{what} needs a SQLAlchemy Session, not {name}; {_instead(given, call)}")


def _instead(given: Any, call: str) -> str:
    if isinstance(given, (type, sessionmaker)):
        return f"make one, and pass that: with Session() as session: {call}"
    if callable(given) and "async_scoped" in type(given).__name__:
        return f"for the AsyncSession in it: await scoped().run_sync(lambda session: {call})"
    if hasattr(given, "session") and hasattr(given, "engine"):  # Flask-SQLAlchemy's extension
        return "pass its session: db.session"
    return f"for an AsyncSession: await session.run_sync(lambda session: {call})"
