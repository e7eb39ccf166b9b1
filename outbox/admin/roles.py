"""Who may do what: the tokens that callers send, each with the name and the role of whoever has it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from outbox.admin import sessions
from outbox.settings import Settings
from outbox.settings.tokens import Role

OPERATING: Final = re.compile(
    r"(/api/v1/admin)?/(pause|resume|dead/retry|document/deliver|reindex|reindex/cancel|reindex/[0-9]+/cancel"
    r"|reindex/rollback|verify|verify/cancel|verify/[0-9]+/cancel)"
)
"""Paths of what a role that operates may do. A route that is added and not named here needs the highest role."""


@dataclass(frozen=True, slots=True)
class Operator:
    """Somebody who has a token."""

    name: str
    role: Role
    token: str = field(repr=False)


def operators_of(settings: Settings) -> tuple[Operator, ...]:
    """All who have a token; none: only this machine is answered, and may do everything."""
    found = [Operator(name, Role[role.upper()], token) for name, role, token in settings.named_tokens]
    if settings.admin_token is not None:
        found.append(Operator("admin", Role.ADMINISTER, settings.admin_token.get_secret_value()))
    return tuple(found)


def with_token(operators: Iterable[Operator], given: bytes) -> Operator | None:
    """Whose token it is. Compares with all of them, so that the time tells nothing."""
    found = [each for each in operators if sessions.same(given, each.token)]
    return found[0] if found else None


def with_session(operators: Iterable[Operator], cookie: str) -> Operator | None:
    """Whose browser has this cookie; None: nobody's, or it is over."""
    found = [each for each in operators if sessions.is_session(cookie, each.token)]
    return found[0] if found else None


def needed(path: str) -> Role:
    """The role that a request needs which changes something."""
    if path == "/logout":
        return Role.LOOK
    return Role.OPERATE if OPERATING.fullmatch(path) else Role.ADMINISTER
