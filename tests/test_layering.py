"""Each room imports only what the design allows it: the table below is the design's."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import outbox
from tests.support import LIMIT_S

ROOT = Path(outbox.__file__).parent

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "settings": {"errors"},
    "models": {"errors"},
    "sqlite": set(),
    "logs": {"settings"},
    "documents": {"settings", "errors"},
    "keys": {"documents", "errors"},
    "entities": {"capture", "dependents", "keys", "documents", "models", "settings", "errors"},
    "dependents": {"entities", "errors"},
    "capture": {"repository", "rows", "triggers", "dependents", "entities", "keys", "models", "settings", "errors"},
    "triggers": {"trigger_sql", "rows", "entities", "errors"},
    "trigger_sql": {"dependents", "entities", "keys", "models", "errors"},
    "rows": {"models", "errors"},
    "repository": {"rows", "models", "documents", "keys", "entities", "destinations", "settings", "errors"},
    "store": {"models", "transition", "errors"},
    "claims": {"store", "illegal", "models", "transition"},
    "illegal": {"store", "transition", "errors"},
    "evidence": {"store", "models"},
    "upkeep": {"store", "models", "transition"},
    "operators": {"store", "models", "transition"},
    "verifications": {"store", "models"},
    "merge": set(),
    "load": {"documents", "entities", "claims", "store", "plan", "destinations.base", "models", "errors"},
    "plan": {"models", "merge", "destinations.base"},
    "copies": {"destinations.base", "errors"},
    "destinations": {
        "destinations.base", "destinations.elasticsearch", "destinations.embedded", "settings", "errors",
    },
    "destinations.base": {"errors"},
    "destinations.elasticsearch": {"destinations.base", "merge", "errors"},
    "destinations.mapping": set(),
    "destinations.embedded": {"destinations.base", "destinations.mapping", "merge", "words", "errors"},
    "search": {"destinations", "destinations.base", "settings"},
    "words": set(),
    "transition": {"models", "destinations.base"},
    "breaker": set(),
    "rate": set(),
    "poison": set(),
    "wakeup": {"errors"},
    "presence": set(),
    "prune": {"upkeep", "store"},
    "growth": {"settings", "logs"},
    "maintenance": {
        "store", "upkeep", "jobs", "reindex", "prune", "growth", "verify", "settings", "logs", "presence", "models",
        "errors",
    },
    "relay": {
        "errors", "settings", "models", "logs", "claims", "illegal", "evidence", "store", "load", "entities", "plan",
        "copies", "destinations.base", "transition", "breaker", "poison", "rate", "wakeup",
    },
    "testing": {
        "destinations.base", "destinations.embedded", "entities", "models", "operators", "relay", "settings", "store",
    },
    "verify": {"entities", "keys", "destinations.base", "verifications", "store", "models", "errors"},
    "tenants": {"documents", "destinations.base", "entities", "keys", "models", "operators", "store", "errors"},
    "jobs": {"store", "models", "presence", "errors"},
    "lane": {"destinations.base", "errors"},
    "reindex": {
        "jobs", "lane", "entities", "keys", "destinations.base", "models", "presence", "rate", "logs", "errors",
    },
    "schema": {"models", "errors"},
    "admin": set(),
    "admin.figures": {"claims", "illegal", "jobs", "upkeep", "models"},
    "admin.alerts": {"admin.figures"},
    "admin.ledger": {"admin.figures", "models", "upkeep"},
    "admin.watch": {"admin.desk", "destinations.base", "upkeep", "models", "errors"},
    "admin.desk": {
        "admin.figures", "destinations.base", "entities", "errors", "jobs", "logs", "models", "operators", "reindex",
        "schema", "settings", "verify",
    },
    "admin.shapes": {"admin.figures", "jobs", "models"},
    "admin.overview": {
        "admin.alerts", "admin.desk", "admin.figures", "admin.ledger", "admin.shapes", "admin.watch", "admin", "models",
        "upkeep", "verifications", "verify",
    },
    "admin.metrics": {"admin.alerts", "admin.figures", "admin.ledger", "admin.overview", "admin.shapes", "models"},
    "admin.guard": {"logs", "errors"},
    "admin.api": {"admin.desk", "admin.overview", "admin.shapes", "models"},
    "admin.health": {"admin.desk", "admin.metrics", "admin.overview", "errors"},
    "admin.words": {"admin.shapes", "logs"},
    "admin.charts": set(),
    "admin.connections": set(),
    "admin.pages": {
        "admin", "admin.api", "admin.charts", "admin.desk", "admin.figures", "admin.guard", "admin.overview",
        "admin.shapes", "admin.words", "errors", "logs", "models",
    },
    "admin.app": {
        "admin", "admin.api", "admin.desk", "admin.guard", "admin.health", "admin.metrics", "admin.overview",
        "admin.pages", "admin.watch", "destinations.base", "entities", "errors", "logs", "settings",
    },
    "check": {
        "destinations.base", "store", "verifications", "jobs", "growth", "schema", "triggers", "entities", "models",
        "logs", "errors",
    },
}  # fmt: skip


def modules() -> list[str]:
    paths = (path.relative_to(ROOT).with_suffix("") for path in ROOT.rglob("*.py") if "_migrations" not in path.parts)
    names = (".".join(part for part in path.parts if part != "__init__") for path in paths)
    return sorted(name for name in names if name and not name.startswith("cli"))


def imported(module: str) -> set[str]:
    path = ROOT / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found: set[str] = set()
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            children = {f"{statement.module}.{alias.name}" for alias in statement.names}
            found |= {child for child in children if child.removeprefix("outbox.") in modules()} or {statement.module}
    return {name.removeprefix("outbox.") for name in found if name.startswith("outbox.")}


def test_every_module_has_its_line_in_the_table() -> None:
    assert set(modules()) == set(ALLOWED)


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_module_imports_only_what_it_may(module: str) -> None:
    if module not in modules():
        pytest.skip("covered by the test above")
    assert imported(module) <= ALLOWED[module]


def test_nobody_imports_the_command_line() -> None:
    assert not [module for module in modules() if any(name.startswith("cli") for name in imported(module))]


def test_nothing_needs_greenlet_which_only_asyncio_does() -> None:
    names = ", ".join(f"outbox.{module}" for module in modules())
    script = (
        "import sys; sys.modules['greenlet'] = None\n"
        f"import {names}, outbox.cli\n"
        "from sqlalchemy.orm import sessionmaker\n"
        "outbox.EntityRegistry().capture(sessionmaker())\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=LIMIT_S)
