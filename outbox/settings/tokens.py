"""The secrets that callers of the admin server send: what a good one is, and whose it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from pydantic import SecretStr

SHORTEST: Final = 16


class Role(IntEnum):
    """What somebody may do; each may do what those before it may."""

    LOOK = 0
    """See everything, change nothing."""
    OPERATE = 1
    """What can be taken back or done again: pause, resume, retry, rebuild, verify."""
    ADMINISTER = 2
    """Everything: what was removed for good does not come back."""

    def __str__(self) -> str:
        return self.name.lower()


ROLES: Final = tuple(map(str, Role))


class NamedToken(NamedTuple):
    """A token, who has it, and what they may do."""

    name: str
    role: str
    token: str


def whole(value: SecretStr | None) -> SecretStr | None:
    """A token alone, without the line end of the file that it was read from. Raises `ValueError` for a short one."""
    token = "" if value is None else value.get_secret_value().strip()
    if not token:
        return None  # a variable that is set to nothing, as compose files do
    if len(token) < SHORTEST:
        raise ValueError(f"it can be guessed: use {SHORTEST} characters or more, e.g. of 'openssl rand -hex 32'")
    return SecretStr(token)


def parsed(value: SecretStr | None) -> tuple[NamedToken, ...]:
    """What `NAME:ROLE:TOKEN,…` says, right or not."""
    entries = [each.strip() for each in value.get_secret_value().split(",")] if value is not None else []
    parts = ([part.strip() for part in each.split(":", 2)] for each in entries if each)
    return tuple(NamedToken(*[*each, "", ""][:3]) for each in parts)


def check(tokens: Sequence[NamedToken], admin: SecretStr | None) -> None:
    """Raises `ValueError`, which shows no token. `admin`: the one of `OUTBOX_ADMIN_TOKEN`."""
    for number, (name, role, token) in enumerate(tokens, 1):
        if not re.fullmatch(r"[\w.@-]{1,60}", name) or role not in ROLES:
            raise ValueError(
                f"token {number} is not NAME:ROLE:TOKEN with a name of letters, digits and . _ @ - and one of the "
                f"roles {', '.join(ROLES)}"
            )
        if len(token) < SHORTEST:
            raise ValueError(f"the token of {name} can be guessed: use {SHORTEST} characters or more")
    names, secrets = {"admin", *(each.name for each in tokens)}, {each.token for each in tokens}
    if len(names) <= len(tokens) or len(secrets) < len(tokens):
        raise ValueError(
            "two have the same name or the same token (admin is the name of OUTBOX_ADMIN_TOKEN): who did what could "
            "not be told"
        )
    if admin and (same := next((each.name for each in tokens if each.token == admin.get_secret_value()), None)):
        raise ValueError(
            f"the token of {same} is that of OUTBOX_ADMIN_TOKEN, too: what {same} may do could not be told"
        )
