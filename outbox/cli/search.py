"""search: what an index finds, as a quick look from the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import click

from outbox import documents, logs
from outbox.cli.options import json_option
from outbox.cli.wiring import load_settings
from outbox.destinations import destination_of
from outbox.destinations.base import Hit
from outbox.destinations.embedded.words import edits, errors_allowed, folded, words_of
from outbox.errors import UnknownTenant, shortened

WIDTH = 80
BORDERS = 10  # what the table itself takes of it
SCORE_WIDTH = 7
MOST_FIELDS = 3
MOST_HITS = 1_000
LONGEST_ID = 24
BEFORE_WORD = 16  # characters of a long text that are shown before the first word that was found


@click.command()
@click.argument("index")
@click.argument("query", nargs=-1, required=True, metavar="QUERY...")
@click.option("--tenant", metavar="TENANT", help="Only documents of this tenant.")
@click.option("--limit", type=click.IntRange(1, MOST_HITS), default=10, show_default=True, help="At most so many.")
@json_option
def search(index: str, query: tuple[str, ...], tenant: str | None, limit: int, as_json: bool) -> None:
    """Search an index for words; the best matches first.

    Finds beginnings of words and misspelt words, too. Elasticsearch shows what was delivered after its next refresh, a
    second later by default. Exits 1 if no document is of the tenant.

    \b
    Examples:
      outbox-relay search contacts ada lovelace
      outbox-relay search contacts "ada lovlace" --tenant acme --limit 50
      outbox-relay search contacts ada --json
    """
    destination = destination_of(load_settings())
    try:
        hits = destination.search(index, " ".join(query), tenant=tenant, limit=limit)
        if tenant is not None and not hits and not destination.has_tenant(index, documents.tenant_spellings(tenant)):
            raise UnknownTenant(f"no document of index {index} is of tenant {shortened(tenant)}")
    finally:
        destination.close()
    if as_json:
        click.echo(json.dumps([{"id": hit.document_id, "score": hit.score, "document": hit.source} for hit in hits]))
    elif not hits:
        click.echo("no matches")
    else:
        _show(hits, words_of(" ".join(query)))
        more = f"; --limit {min(limit * 10, MOST_HITS)} shows more, if there are any" if len(hits) == limit else ""
        click.echo(f"{len(hits)} {'match' if len(hits) == 1 else 'matches'}{more}")


def _show(hits: Sequence[Hit], words: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    ids = [logs.safe(hit.document_id) for hit in hits]
    id_width = min(LONGEST_ID, max(map(len, ["id", *ids])))
    text_width = WIDTH - SCORE_WIDTH - id_width - BORDERS
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("score", justify="right", width=SCORE_WIDTH)
    table.add_column("id", no_wrap=True, width=id_width)
    table.add_column("found in", no_wrap=True, width=text_width)
    for hit, document_id in zip(hits, ids, strict=True):
        lines = [_line(path, text, at, text_width) for path, text, at in fields_with(hit.source, words)]
        table.add_row(f"{hit.score:.2f}", Text(document_id), Text("\n".join(lines)))
    Console(width=WIDTH, highlight=False).print(table)


def _line(path: str, text: str, at: int, width: int) -> str:
    """One field, from a little before the word that was found if not all of it fits."""
    if len(path) + 2 + len(text) > width and at > BEFORE_WORD:
        text = f"…{text[at - BEFORE_WORD :]}"
    return f"{logs.safe(path)}: {logs.safe(text[: width * 2])}"


def fields_with(source: dict[str, Any], words: Sequence[str]) -> list[tuple[str, str, int]]:
    """The fields that hold the words: path, text, and where the first one is in it.

    If none does (a number was found, or a word that only the destination understands), the first text there is.
    """
    texts = list(_texts("", source))
    holding = [(path, text, at) for path, text in texts if (at := _first(text, words)) is not None]
    return (holding or [(path, text, 0) for path, text in texts[:1]])[:MOST_FIELDS]


def _texts(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(f"{path}.{key}" if path else key, item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(path, item)


def _first(text: str, words: Sequence[str]) -> int | None:
    for held in words_of(text):
        if any(_means(word, held) for word in words):
            return max(text.lower().find(held), 0)
    return None


def _means(word: str, held: str) -> bool:
    word, held = folded(word), folded(held)
    return held.startswith(word) or edits(word, held, errors_allowed(word)) <= errors_allowed(word)


commands = [search]
