"""The cookie of a browser that has given the token: when it ends, and a proof that this server wrote it."""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import Final

COOKIE: Final = "outbox_admin"
SESSION_S: Final = 12 * 3_600


def same(given: bytes, token: str) -> bool:
    """Takes as long whatever the first character that differs."""
    return hmac.compare_digest(given, token.encode())


def session(token: str, now: float | None = None) -> str:
    """The value of the cookie, for a browser that has given the token."""
    ends = str(int((time.time() if now is None else now) + SESSION_S))
    return f"{ends}.{_proof(ends, token)}"


def is_session(cookie: str, token: str, now: float | None = None) -> bool:
    """Whether it was made for this token and is not over."""
    ends, _, proof = cookie.partition(".")
    return (
        same(proof.encode(), _proof(ends, token))
        and ends.isascii()
        and ends.isdigit()
        and int(ends) > (time.time() if now is None else now)
    )


def _proof(ends: str, token: str) -> str:
    return hmac.new(token.encode(), f"outbox-relay admin session until {ends}".encode(), hashlib.sha256).hexdigest()
