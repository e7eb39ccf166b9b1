"""What was written with a row is shown, and answered, digit by digit and as JSON that can be copied."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from html import unescape
from typing import Any

import pytest
from click.testing import CliRunner

from outbox.admin.formats import pretty
from outbox.admin.hidden import content
from outbox.cli import main
from tests.admin.world import World
from tests.support.outbox import Outbox

STORED = [
    '{"decimal": 0.1234567890123456789, "large": 123456789012345678901234567890, "huge": 1E400, "a": 1.10}',
    '{"next line \\u0085": "\\u0085\x7f\xa0\u2028\u202e\u200b\ufeff", "tag": "\U000e0001", "quoted": "\\"\\\\\\n\\t"}',
    '{"empty": {}, "none": [], "deep": [{"a": [1, [2.50, null, true, false]]}], "caf\xe9": "\u65e5 \U0001f98a"}',
    '[{"patch": 1.0}, {"upsert": 9007199254740993}]',
    f'{{"digits": {"7" * 5_000}}}',
]


def shown_by_command(outbox: Outbox, row: int) -> str:
    url = outbox.url
    return CliRunner().invoke(main, ["show", str(row), "--json", "--database-url", url]).stdout


def same(text: str) -> Any:
    """As it parses without losing a digit."""
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


@pytest.mark.parametrize("stored", STORED, ids=range(len(STORED)))
def test_document_that_is_copied_from_page_api_or_command_parses_to_what_is_stored(
    embedded: World, stored: str
) -> None:
    row = embedded.outbox.put_raw("contacts", "c1", stored)
    page = embedded.client.get(f"/events/{row}").text
    shown = re.search(r'<pre class="document"[^>]*>(.*?)</pre>', page, re.DOTALL)
    assert shown is not None
    copied = unescape(shown[1])
    assert same(copied) == same(stored)
    assert all(each.isprintable() for each in copied.split("\n"))
    assert same(embedded.client.get(f"/api/v1/admin/events/{row}").text)["document"] == same(stored)
    said = shown_by_command(embedded.outbox, row)
    assert said.isascii() and same(said)["job"]["document"] == same(stored)


@pytest.mark.parametrize("stored", ["no JSON", '{"a": NaN}', "[" * 100_000, '{"a": 1} {"b": 2}'])
def test_what_another_program_wrote_and_is_no_json_is_shown_as_it_is(embedded: World, stored: str) -> None:
    row = embedded.outbox.put_raw("contacts", "c1", stored)
    assert stored in unescape(embedded.client.get(f"/events/{row}").text)
    assert embedded.get(f"/events/{row}")["document"] == stored
    assert json.loads(shown_by_command(embedded.outbox, row))["job"]["document"] == stored


def test_hidden_field_leaves_the_numbers_beside_it_as_they_are() -> None:
    shown = pretty(content('{"email": "a@b", "sum": 0.10000000000000000001}', ["email"]))
    assert "0.10000000000000000001" in shown and "a@b" not in shown


def test_values_of_both_sides_of_a_document_are_shown_whatever_their_size() -> None:
    for value in ([10**30], {"a": "\ud800"}, [0.1, None, True]):
        assert json.loads(unescape(pretty(value))) == value
