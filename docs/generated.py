"""A hook of MkDocs: what the reference says of commands, settings, metrics … is made of the code that has them.

A page asks for it by a line that begins with `<!-- generated: NAME -->`, NAME being a key of `TABLES`. The rest of the
line is for those who read the page as it is.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from outbox.admin import api
from outbox.admin.metrics import Metrics
from outbox.admin.screens import api as screens
from outbox.admin.statistics import NOTHING
from outbox.cli import main
from outbox.cli.look import default_text
from outbox.destinations.remedies import ANY_OTHER, OF_THE_DESTINATION, OUR_OWN
from outbox.settings import Settings, variable


def table(*rows: str, kind: str = "") -> str:
    """On a phone each row of it is a block of its own, and `kind` says what the cells are called there."""
    return f'<div class="{f"narrow {kind}".strip()}" markdown>\n\n{chr(10).join(rows)}\n\n</div>'


# -- commands ---------------------------------------------------------------------------------------------------------


def walk(group: click.Group, path: str = "outbox-relay") -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from walk(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def commands() -> str:
    return "\n\n".join(_command(path, command) for path, command in walk(main))


def _command(path: str, command: click.Command) -> str:
    context = click.Context(command, info_name=path)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    parts = [f"## `{path}`", f"```text\n{usage}\n```"]
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b"):
            lines = paragraph.removeprefix("\b\n").removeprefix("Examples:\n")
            parts.append(f"```sh\n{textwrap.dedent(lines)}\n```")
        else:
            parts.append(escaped(" ".join(paragraph.split())))
    options = [each for each in command.params if isinstance(each, click.Option)]
    records = [record for each in options if (record := each.get_help_record(context))]
    rows = [f"| `{names}` | {escaped(meaning)} |" for names, meaning in records]
    if rows:
        parts.append(table("| option | meaning |", "|---|---|", *rows))
    return "\n\n".join(parts)


def escaped(text: str) -> str:
    """Text of a help or a description, as Markdown that shows it as it is; what is typed becomes code."""
    pieces = re.split(r"(\bOUTBOX_[A-Z_]+|(?<![\w-])--[a-z][a-z-]*|'outbox-relay [^']+')", text)
    plain = (re.sub(r"([\\`*_|<>\[\]])", r"\\\1", piece) for piece in pieces[::2])
    code = (f"`{piece.strip(chr(39))}`" for piece in pieces[1::2])
    return "".join(piece for pair in zip_longest(plain, code, fillvalue="") for piece in pair)


# -- settings ---------------------------------------------------------------------------------------------------------


def settings() -> str:
    head = ("| variable | default | range | meaning |", "|---|---|---|---|")
    return table(*head, *map(setting, Settings.model_fields), kind="settings")


def setting(name: str) -> str:
    """One row of the table."""
    info = Settings.model_fields[name]
    return f"| `{variable(name)}` | `{default_text(info.default)}` | {range_of(name, info)} | {info.description} |"


def range_of(name: str, info: FieldInfo) -> str:
    """What a setting may be."""
    if name == "gc_deletes":  # a pattern, said in words
        return "a number and `ms`, `s`, `m`, `h` or `d`"
    if get_origin(info.annotation) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(info.annotation))
    if info.annotation is bool:
        return "`true`, `false`"
    limits = {name: getattr(rule, name) for rule in info.metadata for name in ("ge", "gt", "le") if hasattr(rule, name)}
    if not limits:
        return ""
    least = f"{limits['ge']:,}" if "ge" in limits else f"over {limits['gt']:,}"
    return f"{least} – {limits['le']:,}"


# -- metrics ----------------------------------------------------------------------------------------------------------


class _Everything:
    """What the metrics are made of, with one of each thing that can be seen."""

    def newest(self) -> Any:
        job = {"job_id": 1, "index": "contacts", "phase": "scan", "documents": 0, "total_documents": 0}
        queue = {"unfinished": 0, "fresh": 0, "retrying": 0, "claimed": 0, "dead": 0, "oldest_seconds": None}
        return SimpleNamespace(
            queue=SimpleNamespace(**queue),
            destination=SimpleNamespace(reachable=True),
            verification=SimpleNamespace(drift=0, finished_at=datetime.now(UTC)),
            reindexes=[SimpleNamespace(**job)],
            relays=[],
            entities=[],
            alerts=[],
            paused=None,
            database_bytes=0,
        )

    def by_index_and_action(self) -> Any:
        return {("contacts", "index"): NOTHING}


def metrics() -> str:
    rows = ["| metric | type | labels | says |", "|---|---|---|---|"]
    for family in Metrics(_Everything()).collect():  # type: ignore[arg-type]
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in getattr(family, "_labelnames", ()))
        rows.append(f"| `{name}` | {family.type} | {labels} | {escaped(family.documentation)} |")
    return table(*rows, kind="metrics")


# -- routes of the admin API ------------------------------------------------------------------------------------------


def routes() -> str:
    rows = ["| route | does |", "|---|---|"]
    for each in [*api.routes.routes, *screens.routes.routes]:
        (method,) = each.methods  # type: ignore[attr-defined]
        rows.append(f"| `{method} {each.path}` | {escaped(each.summary)} |")  # type: ignore[attr-defined]
    return table(*rows)


# -- constructs of the mapper -----------------------------------------------------------------------------------------


def constructs() -> str:
    """The list that the tests go through: they do what each row says."""
    sys.path.insert(0, str(Path(__file__).parent.parent))  # a hook is loaded from its file
    try:
        from tests.entities.constructs import CONSTRUCTS
    finally:
        sys.path.pop(0)
    rows = ["| construct | sessions | bulk statements | triggers | remark |", "|---|---|---|---|---|"]
    for each in CONSTRUCTS:
        if each.refused is None:
            rows.append(f"| {each.name} | {each.sessions} | {each.bulk} | {each.triggers} | {each.remark} |")
        else:
            rows.append(f"| {each.name} | refused | refused | refused | “{escaped(each.refused)}” |")
    return table(*rows)


# -- error types ------------------------------------------------------------------------------------------------------


def errors() -> str:
    return table(
        "| error type | the row | what happened, and what to do |",
        "|---|---|---|",
        *(
            f"| {', '.join(f'`{name}`' for name in each.error_types)} | {each.becomes} | {escaped(each.text)} |"
            for each in (*OUR_OWN, *OF_THE_DESTINATION)
        ),
        f"| any other | dead | {escaped(ANY_OTHER)} |",
    )


# -- pages ------------------------------------------------------------------------------------------------------------

TABLES: Final[dict[str, Callable[[], str]]] = {
    "commands": commands,
    "settings": settings,
    "metrics": metrics,
    "routes": routes,
    "constructs": constructs,
    "errors": errors,
}


def filled(markdown: str) -> str:
    """A page with its generated parts in place."""
    return re.sub(r"<!-- generated: (\w+) -->.*", lambda found: TABLES[found[1]](), markdown)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What MkDocs calls for each page."""
    return filled(markdown)
