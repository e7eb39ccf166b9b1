"""The rooms of the design: what each may import, and that no import runs in a circle."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import outbox
from tests.support import LIMIT_S

ROOT = Path(outbox.__file__).parent

FLOORS: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "settings": {"errors"},
    "documents": {"errors"},
    "logs": {"settings"},
    "store": {"documents", "errors", "files"},
    "destinations": {"documents", "errors", "files", "settings"},
    "entities": {"documents", "errors", "settings", "store"},
    "triggers": {"entities", "errors", "store"},
    "write": {"destinations", "documents", "entities", "errors", "settings", "store", "triggers"},
    "relay": {"destinations", "documents", "entities", "errors", "logs", "settings", "store"},
    "reindex": {"destinations", "entities", "errors", "logs", "store"},
    "verify": {"destinations", "entities", "errors", "store"},
    "mappings": {"destinations", "entities", "errors", "store"},
    "maintenance": {"errors", "logs", "mappings", "reindex", "settings", "store", "verify"},
    "schema": {"errors", "store"},
    "models": {"store"},
    "sqlite": {"store"},
    "search": {"destinations", "documents", "settings"},
    "tenants": {"destinations", "documents", "entities", "errors", "store"},
    "testing": {"destinations", "entities", "errors", "relay", "settings", "store"},
    "check": {"destinations", "entities", "errors", "logs", "maintenance", "mappings", "schema", "store", "triggers"},
    "admin": {"destinations", "documents", "entities", "errors", "logs", "mappings", "reindex", "schema", "settings"}
    | {"store", "tenants", "verify"},
}
"""Each room of `outbox/` and the rooms that it may import; the command line is above all of them."""

UPWARDS = {
    ("entities.registry", "write.capture"),  # `registry.capture(Session)` is what users call; imported when called
}
"""The arrows that run up, each named."""

MOST_ROOMS = 24


def module_of(path: Path) -> str:
    return ".".join(part for part in path.relative_to(ROOT).with_suffix("").parts if part != "__init__")


SOURCES = {module_of(path): path for path in ROOT.rglob("*.py") if "_migrations" not in path.parts}


def room_of(module: str) -> str:
    return module.split(".")[0]


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """The modules of the project that a module imports, and whether it does so when it is loaded."""
    tree = ast.parse(SOURCES[module].read_text())
    at_load = {id(statement) for statement in _executed(tree)}
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            children = [f"{statement.module}.{alias.name}" for alias in statement.names]
            names = [child if child.removeprefix("outbox.") in SOURCES else str(statement.module) for child in children]
        else:
            continue
        for name in names:
            if name.startswith("outbox."):
                yield name.removeprefix("outbox."), id(statement) in at_load


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is loaded: neither functions nor what is for the type checker alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _executed(child)


def circle_in(arrows: dict[str, set[str]]) -> list[str]:
    """The names of a circle, or nothing."""
    done: set[str] = set()

    def follow(name: str, above: list[str]) -> list[str]:
        if name in above:
            return above[above.index(name) :]
        if name not in done:
            for other in sorted(arrows.get(name, ())):
                if found := follow(other, [*above, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := follow(name, []))), [])


ARROWS = {
    (module, other)
    for module in SOURCES
    for other, _ in imports(module)
    if room_of(module) not in ("", "cli") and (module, other) not in UPWARDS
}


def test_rooms_are_few_enough_to_be_seen_at_a_glance() -> None:
    rooms = {room_of(module) for module in SOURCES} - {""}
    assert rooms == FLOORS.keys() | {"cli"}
    assert len(rooms) <= MOST_ROOMS


@pytest.mark.parametrize("room", FLOORS)
def test_room_imports_only_what_it_may(room: str) -> None:
    arrows = {(module, other) for module, other in ARROWS if room_of(module) == room}
    assert {arrow for arrow in arrows if room_of(arrow[1]) not in {room, *FLOORS[room]}} == set()


def test_upward_arrow_that_is_gone_is_taken_off_the_list() -> None:
    assert {(module, other) for module, other in UPWARDS if other not in dict(imports(module))} == set()


def test_no_circle_between_rooms() -> None:
    arrows: dict[str, set[str]] = {}
    for module, other in ARROWS:
        if room_of(module) != room_of(other):
            arrows.setdefault(room_of(module), set()).add(room_of(other))
    assert circle_in(arrows) == []


def test_no_circle_between_modules() -> None:
    arrows: dict[str, set[str]] = {}
    for module, other in ARROWS:
        # A package that names what its rooms offer is imported with each of them; that is no arrow of its own.
        if not module.startswith(f"{other}."):
            arrows.setdefault(module, set()).add(other)
    assert circle_in(arrows) == []


def test_nobody_imports_what_operates() -> None:
    operating = {"admin", "cli"}
    assert {arrow for arrow in ARROWS if room_of(arrow[1]) in operating and room_of(arrow[0]) not in operating} == set()


def test_write_side_loads_neither_client_nor_scheduler_nor_command_line() -> None:
    script = (
        "import sys, outbox, outbox.triggers, outbox.schema\n"
        "from sqlalchemy.orm import sessionmaker\n"
        "outbox.EntityRegistry().capture(sessionmaker())\n"
        "print(sorted({'elasticsearch', 'opensearchpy', 'apscheduler', 'click', 'fastapi'} & sys.modules.keys()))"
    )
    said = subprocess.run([sys.executable, "-c", script], check=True, timeout=LIMIT_S, capture_output=True, text=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.slow
def test_nothing_needs_greenlet_which_only_asyncio_does() -> None:
    names = ", ".join(f"outbox.{module}" if module else "outbox" for module in SOURCES if room_of(module) != "cli")
    script = (
        "import sys; sys.modules['greenlet'] = None\n"
        f"import {names}, outbox.cli\n"
        "from sqlalchemy.orm import sessionmaker\n"
        "outbox.EntityRegistry().capture(sessionmaker())\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=LIMIT_S)


OF_ONE_DATABASE = re.compile(
    r"json_each|json_extract|PRAGMA|pragma_|data_version|IMMEDIATE|sqlite_|INDEXED BY|INSERT OR"
    r"|lastrowid(?! =)|(?<!last)rowid|julianday|AS BLOB|iif\("
)
POSITIONAL = re.compile(r"(?:[=<>(,+-]|\b(?:IS|NOT|LIMIT|OFFSET|SELECT|THEN|AND|LIKE))\s*\?(?![:<=!P])")
BEHIND_THE_SEAM = (
    "store/sqlite/",
    "store/postgresql/",
    "triggers/sqlite.py",
    "triggers/postgresql.py",
    "entities/keys.py",
    "destinations/embedded/",
)


def _positional(source: str) -> list[str]:
    """Texts with `?` where a statement takes a parameter."""
    tree = ast.parse(source)
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    repeated = [
        node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and ast.unparse(node).startswith("'?' *")
    ]
    return [text for text in texts if POSITIONAL.search(text)] + [ast.unparse(node) for node in repeated]


def test_sql_of_one_database_stays_behind_the_seam() -> None:
    found = {}
    for path in [*ROOT.rglob("*.py"), ROOT.parent / "migrations/env.py"]:
        name = str(path.relative_to(ROOT if path.is_relative_to(ROOT) else ROOT.parent))
        if "_migrations" not in path.parts and not name.startswith(BEHIND_THE_SEAM):
            source = path.read_text()
            if said := {*OF_ONE_DATABASE.findall(source), *_positional(source)}:
                found[name] = said
    assert found == {}


MOST_LINES = {"file": 450, "class": 250, "function": 75}


def _lengths() -> Iterator[tuple[str, str, int]]:
    for module, path in SOURCES.items():
        source = path.read_text()
        yield "file", module, source.count("\n")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                kind = "class" if isinstance(node, ast.ClassDef) else "function"
                yield kind, f"{module}.{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def test_nothing_is_too_long_to_be_read_in_one_go() -> None:
    assert [each for each in _lengths() if each[2] > MOST_LINES[each[0]]] == []
