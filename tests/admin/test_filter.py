"""The filter of rows: one line of text with qualifiers, read in one place, whichever way it comes."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from outbox.admin.filter import QUALIFIERS, RowFilter, as_text, parse
from outbox.errors import InvalidInput
from outbox.store.models import State
from tests.admin.world import World, kill

READ = [
    ("", RowFilter()),
    ("state:dead", RowFilter(state=State.DEAD)),
    ('  index:contacts\ttenant:"Acme Ltd"  ', RowFilter(index="contacts", tenant="Acme Ltd")),
    ("ID:42 Error:poison", RowFilter(id=42, error="poison")),
    ('document:a:b\\c"d field:(none)', RowFilter(document='a:b\\c"d', field="(none)")),
    (r'document:"say \"no\" \\ \u202e"', RowFilter(document='say "no" \\ \u202e')),
]
REFUSED = [
    ("hue:red", "there is no qualifier 'hue:'; there are index:, tenant:, error:, field:, id:, document:, state:"),
    ("contact-123", "say what 'contact-123' is, e.g. document:contact-123"),
    ('"a b"', "say what '\"a' is"),
    ("index: contacts", "index: has no value; write it right behind the colon, e.g. index:contacts"),
    ('index:""', "index: has no value"),
    ("state:gone", "there is no state 'gone'; there are pending, claimed, done, dead"),
    ("id:c1", "id: takes the number of a row, e.g. id:42, not 'c1'"),
    ("id:0", "id: takes the number"),
    ("id:99999999999999999999", "id: takes the number"),
    ("id:\u0664", "id: takes the number"),
    ("state:dead state:done", "state: stands there twice"),
    ('tenant:"Acme', "the quotes of tenant: have no end"),
    ('tenant:"Acme"Ltd', "put a space between '\"Acme\"' and 'Ltd'"),
    (r'document:"a\d"', r"in quotes \ begins an escape as in JSON: for itself write \\"),
    (r'document:"\ud800"', "in quotes"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "meant"), READ)
def test_what_is_typed_is_read_as_it_is_meant(text: str, meant: RowFilter) -> None:
    assert parse(text) == meant


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_what_cannot_be_read_is_refused_with_what_is_right(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(said)):
        parse(text)


@given(some.dictionaries(some.sampled_from(["index", "tenant", "errorType", "errorField", "document"]), some.text()))
def test_what_comes_as_parameters_is_the_same_filter_whatever_the_values_are(parameters: dict[str, str]) -> None:
    text = as_text(parameters)
    assert parse(text).parameters == {name: value for name, value in parameters.items() if value}
    assert text.isprintable() and parse(" ".join(parse(text).words)) == parse(text)


def rows(world: World) -> dict[str, int]:
    """Of every state, and with something that each qualifier finds."""
    outbox = world.outbox
    found = {
        "done": outbox.index("contacts", "a b", {}, tenant_id="Acme Ltd"),
        "dead": outbox.index("contacts", "c", {}, tenant_id="Acme Ltd"),
        "other": outbox.index("deals", "c", {}),
        "tried": outbox.index("deals", "d", {}),
        "fresh": outbox.index("deals", "c", {}, tenant_id="globex"),
    }
    outbox.raw("UPDATE outbox_events SET state = 'done', finished_at = 1 WHERE id = :id", id=found["done"])
    kill(outbox, found["dead"], "poison"), kill(outbox, found["other"])
    outbox.raw("UPDATE outbox_events SET error_field = 'age' WHERE id = :id", id=found["other"])
    outbox.raw("UPDATE outbox_events SET available_at = 9, error_type = 'busy' WHERE id = :id", id=found["tried"])
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('tenant:"Acme Ltd"', ["dead", "done"]),
        ('tenant:"Acme Ltd" state:done', ["done"]),
        ("document:c", ["fresh", "other", "dead"]),
        ("document:c state:dead index:deals", ["other"]),
        ("field:age", ["other"]),
        ("state:pending error:busy", ["tried"]),
        ("id:2", ["dead"]),
        ("id:2 error:poison state:dead", ["dead"]),
        ("id:2 error:other", []),
        ("id:2 state:pending", []),
        ("id:99", []),
    ],
)
def test_page_api_and_parameters_find_the_same_rows(embedded: World, text: str, expected: list[str]) -> None:
    found = rows(embedded)
    ids = [found[name] for name in expected]
    assert [each["id"] for each in embedded.get("/events", q=text)["items"]] == ids
    for asked in ({"q": text}, parse(text).parameters):
        page = embedded.client.get("/events", params=asked).text
        assert [int(row) for row in re.findall(r'<tr data-key="(\d+)"', page)] == ids


def test_parameters_of_the_api_and_its_text_must_both_fit(embedded: World) -> None:
    found = rows(embedded)
    seen = embedded.get("/events", q="document:c", state="dead", index="deals")["items"]
    assert [each["id"] for each in seen] == [found["other"]]
    assert "stands there twice" in embedded.get("/events", 422, q="state:dead", state="dead")["detail"]


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ({"q": 'state:gone  index:"a b"'}, 'state:gone  index:"a b"'),
        ({"state": "gone"}, "state:gone"),
        ({"q": "Grace", "tenant": "Acme Ltd"}, 'Grace tenant:"Acme Ltd"'),
    ],
)
def test_text_that_cannot_be_read_stays_in_the_field_beside_what_is_wrong(
    embedded: World, asked: dict[str, Any], kept: str
) -> None:
    answer = embedded.client.get("/events", params=asked, headers={"Accept": "text/html"})
    assert answer.status_code == 422
    field = re.search(r'<input name="q" value="([^"]*)"', answer.text)
    assert field is not None and unescape(field[1]) == kept
    assert 'role="alert"' in answer.text and all(f"<code>{each.name}:</code>" in answer.text for each in QUALIFIERS)
