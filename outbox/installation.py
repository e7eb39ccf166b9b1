"""How what is missing is installed."""

from __future__ import annotations

import shlex
from pathlib import Path

import outbox


def install_command(extra: str) -> str:
    """The command that brings an extra. A checkout is named by its path: pip may know no package of that name."""
    checkout = Path(outbox.__file__).parents[1]
    if (checkout / "pyproject.toml").exists():
        return f"pip install -e {shlex.quote(f'{checkout}[{extra}]')}"
    return f"pip install 'outbox-relay[{extra}]'"
