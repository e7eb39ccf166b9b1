"""Loguru, set up once; and the `[ES] …` lines, of which there is one for every operation that was answered.

A line is a fixed text with fields, `logger.info("index {index} takes rows again", index=name)`: a person reads the
sentence, and with `OUTBOX_LOG_FORMAT=json` a machine reads the fields. What comes from elsewhere (names, ids, errors,
reasons) is a field, never part of the text, and goes through `safe`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO

import orjson
from loguru import logger

from outbox.settings import Settings

_TEXT = "{time:YYYY-MM-DD HH:mm:ss} {level: <7} {message}"


class _Output:
    """How the lines look; `set_up` chooses."""

    json = False
    operations = True


def set_up(settings: Settings, stream: TextIO | None = None) -> None:
    """Send all logs to `stream` (default: standard error), as text or JSON lines."""
    _Output.json = settings.log_format == "json"
    _Output.operations = settings.log_operations
    logger.remove()
    logger.add(
        stream or sys.stderr,
        level=settings.log_level,
        format=_as_json if _Output.json else _TEXT,
        colorize=None if stream is None and not _Output.json else False,
        backtrace=False,
        diagnose=False,  # it prints the values of variables, secrets included
    )


def _as_json(record: Any) -> str:
    entry = {
        "time": record["time"].astimezone(UTC).isoformat(timespec="milliseconds"),
        "level": record["level"].name,
        "message": record["message"],
        **record["extra"],
    }
    if record["exception"]:
        entry["exception"] = repr(record["exception"].value)
    # Loguru formats what it gets: braces must survive it.
    return _dumped(entry).replace("{", "{{").replace("}", "}}").replace("<", "\\u003c") + "\n"


def _dumped(entry: dict[str, Any]) -> str:
    """JSON, whatever is in it: a line that cannot be made would be lost."""
    try:
        return orjson.dumps(entry, default=str).decode()
    except TypeError:  # what orjson does not take: surrogates, integers of more than 64 bits
        return json.dumps(entry, default=str, ensure_ascii=False).encode(errors="replace").decode()


class Row(Protocol):
    """What the line of an operation says of its row."""

    @property
    def id(self) -> int: ...
    @property
    def action(self) -> str: ...
    @property
    def index_name(self) -> str: ...
    @property
    def document_id(self) -> str: ...


def operations(answered: Iterable[tuple[Row, str | None]]) -> None:
    """Log answered operations, each with its error, if any, in one call.

    A call of loguru for each line would cost more than the rest of the relay's work on the row.
    """
    if not _Output.operations:
        return
    line: Callable[[str, Row, str | None], str]
    if _Output.json:
        now, line = datetime.now(UTC).isoformat(timespec="milliseconds"), _json_line
    else:
        now, line = f"{datetime.now():%Y-%m-%d %H:%M:%S}", _text_line
    done: list[str] = []
    failed: list[str] = []
    for row, error in answered:
        (failed if error else done).append(line(now, row, error))
    if done:
        logger.opt(raw=True).info("".join(done))
    if failed:
        logger.opt(raw=True).error("".join(failed))


def _json_line(now: str, row: Row, error: str | None) -> str:
    entry: dict[str, Any] = {
        "time": now,
        "level": "ERROR" if error else "INFO",
        "message": f"[ES] Error {row.action}" if error else f"[ES] {row.action.upper()}",
        "action": row.action,
        "index": row.index_name,
        "id": row.document_id,
        "event": row.id,
    }
    if error:
        entry["error"] = error
    return _dumped(entry) + "\n"


def _text_line(now: str, row: Row, error: str | None) -> str:
    document = f"{safe(row.index_name)}/{safe(row.document_id)}"
    if error:
        return f"{now} ERROR   [ES] Error {row.action} {document}: {safe(error)}\n"
    return f"{now} INFO    [ES] {row.action.upper()} {document}\n"


def safe(text: str) -> str:
    """Names, ids and errors come from elsewhere: none of them may begin a line of its own or colour the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def rows(number: int, one: str = "", many: str = "", *, kind: str = "") -> str:
    """`1 row waits`, `2 rows wait`: a number of rows and the verb that agrees; `kind`: e.g. `1 dead row`."""
    noun, verb = ("row", one) if number == 1 else ("rows", many)
    return " ".join(word for word in (f"{number:,}", kind, noun, verb) if word)


class Rows(int):
    """A number of rows as a field of a log line: `{count:waits/wait}` reads `1 row waits`, `{count}` reads `2 rows`."""

    def __format__(self, verb: str) -> str:
        one, _, many = verb.partition("/")
        return rows(int(self), one, many)


def span(seconds: float) -> str:
    """`38 s`, `2 min 38 s`, `90 min 0 s`: whole seconds, and no unit above minutes."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def without_operations() -> None:
    """Leave the `[ES] …` lines out: a progress bar is shown in their place."""
    _Output.operations = False
