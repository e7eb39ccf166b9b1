"""Who acted, and the log of what was removed for good."""

from __future__ import annotations

import getpass
import os

from loguru import logger

from outbox import logs


def operator_name() -> str:
    """The user at the terminal, by name where there is one: containers often have none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"uid {os.getuid()}"


def log_removal(what: str, **selection: object) -> None:
    """One line about rows that an operator removed for good: who, what, and by which selection."""
    chosen = [
        f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in sorted(selection.items())
        if value
    ]
    logger.warning(
        "{what} removed for good by {by}; selection: {selection}",
        what=logs.safe(what),
        by=logs.safe(operator_name()),
        selection=logs.safe(" ".join(chosen) or "all"),
    )
