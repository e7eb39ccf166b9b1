"""The README names every command and every setting, with the default and the range that the code has."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import pytest
from click.testing import CliRunner
from pydantic.fields import FieldInfo
from sqlalchemy import Boolean, Engine, ForeignKey, Integer, String, text
from sqlalchemy.orm import DeclarativeBase, mapped_column, relationship, sessionmaker

from outbox import OutboxRepository
from outbox.cli import main
from outbox.cli.look import default_text
from outbox.destinations import destination_of
from outbox.destinations.base import DOCUMENT_MISSING, ILLEGAL_DOCUMENT, OutcomeKind
from outbox.entities.registry import UNKNOWN_ENTITY
from outbox.settings import Settings, load, variable
from outbox.store import models
from outbox.store.models import Action
from tests.support.outbox import Outbox

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SOURCES = {path.relative_to(ROOT / "outbox").as_posix(): path.read_text() for path in (ROOT / "outbox").rglob("*.py")}


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS = dict(commands(main, "outbox-relay"))


def range_text(info: FieldInfo) -> str:
    """What a setting may be, as the table says it."""
    if get_origin(info.annotation) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(info.annotation))
    if info.annotation is bool:
        return "`true`, `false`"
    limits = {name: getattr(rule, name) for rule in info.metadata for name in ("ge", "gt", "le") if hasattr(rule, name)}
    if not limits:
        return ""
    least = f"{limits['ge']:,}" if "ge" in limits else f"over {limits['gt']:,}"
    return f"{least} – {limits['le']:,}"


def row(name: str) -> str:
    info = Settings.model_fields[name]
    return f"| `{variable(name)}` | `{default_text(info.default)}` | {range_text(info)} | {info.description} |"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_command_without_documentation(command: str) -> None:
    assert f"`{command}" in README


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_command_without_help(command: str) -> None:
    assert COMMANDS[command].help


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_command_whose_help_shows_no_example_or_one_that_does_not_parse(command: str) -> None:
    shown = re.findall(rf"^ +{re.escape(command)}\b.*$", COMMANDS[command].help or "", re.MULTILINE)
    assert shown
    for line in shown:
        words = shlex.split(re.split(r" [|>] |  #", line)[0])[len(command.split()) :]
        COMMANDS[command].make_context(command, words, resilient_parsing=False)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_that_does_not_fit_80_columns(command: str) -> None:
    text = CliRunner().invoke(main, [*command.split()[1:], "--help"], terminal_width=80).stdout
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    "group", ["", *sorted({command.rpartition(" ")[0] for command in COMMANDS} - {"outbox-relay"})]
)
def test_list_of_commands_that_breaks_off(group: str) -> None:
    text = CliRunner().invoke(main, [*group.split()[1:], "--help"], terminal_width=78).stdout  # of 80, as click has it
    assert [line for line in text.split("Commands:")[1].splitlines() if line.endswith("...")] == []


GUIDE = CliRunner().invoke(main, ["--help"], terminal_width=80).stdout.split("\nOptions:")[0]


@pytest.mark.parametrize("command", sorted(main.commands))
def test_command_that_the_guide_at_the_top_of_the_help_misses(command: str) -> None:
    assert re.search(rf"outbox-relay\s+([a-z]+\|)?{command}\b", GUIDE)


def test_guide_that_does_not_fit_80_columns() -> None:
    assert max(map(len, GUIDE.splitlines())) <= 80


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_setting_without_documentation_or_with_another_default_or_range(name: str) -> None:
    if "gc_deletes" in name:  # a pattern, said in words
        assert row(name).replace("|  |", "| a number and `ms`, `s`, `m`, `h` or `d` |") in README
    else:
        assert row(name) in README


def test_variable_that_no_setting_reads() -> None:
    known = {variable(name) for name in Settings.model_fields}
    assert set(re.findall(r"OUTBOX_[A-Z_]+\b", README)) <= known


def test_command_that_does_not_exist() -> None:
    groups = {command.rpartition(" ")[0] for command in COMMANDS}
    named = {match.strip() for match in re.findall(r"(?:`|^)outbox-relay((?: [a-z]+)+)", README, re.MULTILINE)}
    for words in named:
        command = f"outbox-relay {words}"
        assert command in groups or any(command == each or command.startswith(f"{each} ") for each in COMMANDS), command


@pytest.mark.parametrize("kind", [kind for kind in OutcomeKind if kind is not OutcomeKind.CONFLICT])
def test_outcome_without_documentation(kind: OutcomeKind) -> None:
    assert f"| {kind.value} |" in README


ERROR_TYPES = {
    *(models.UNANSWERED, models.RELAY_DIED, models.POISON, models.OVERTAKEN, models.UNEXPLAINED),
    *(models.ILLEGAL_TEXT, DOCUMENT_MISSING, ILLEGAL_DOCUMENT, UNKNOWN_ENTITY),
    *re.findall(r'LoadFailed\("(\w+)"', "".join(SOURCES.values())),
    *re.findall(r'OutcomeKind\.\w+,\s+"(\w+)"', SOURCES["relay/load.py"]),
}


def test_error_types_of_our_own_are_all_in_the_table_and_no_others() -> None:
    table = README.split("| error type |")[1].split("\n\n")[0]
    named = {name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert {name for name in named if not name.startswith("http_")} == ERROR_TYPES


@pytest.mark.parametrize("action", list(Action))
def test_log_line_of_an_action_without_documentation(action: Action) -> None:
    assert f"`[ES] {action.upper()}" in README


def anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


def test_section_that_the_list_at_the_top_misses() -> None:
    listed = README[README.index("[Start](#start)") : README.index("\n## ")]
    sections = [anchor(heading) for heading in re.findall(r"^## (.+)$", README, re.MULTILINE)]
    assert [each for each in sections if f"](#{each})" not in listed] == []


def test_command_that_takes_no_database_although_all_but_some_are_said_to() -> None:
    (but,) = re.findall(r"All but ([^.]+) take `--database-url`", README)
    without = [
        path.removeprefix("outbox-relay ")
        for path, command in COMMANDS.items()
        if not any("--database-url" in option.opts for option in command.params)
    ]
    assert sorted(re.findall(r"`([^`]+)`", but)) == sorted(without)


def test_link_that_leads_nowhere() -> None:
    anchors = {anchor(heading) for heading in re.findall(r"^#+ (.+)$", README, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors
    for path in re.findall(r"\]\(([^#)][^)]*)\)", README):
        assert (ROOT / path).exists(), path


def test_file_of_the_project_that_does_not_exist() -> None:
    for path in re.findall(r"`((?:bin|tests|outbox|examples|deploy|\.ci)/[\w/.-]+)`", README):
        assert (ROOT / path).exists(), path


@pytest.mark.usefixtures("engine")  # the tables, in app.db of the working directory
def test_first_snippet_runs_as_it_stands() -> None:
    names: dict[str, Engine] = {}
    exec(README.split("```python\n")[1].split("```")[0], names)
    with names["engine"].connect() as connection:
        rows = connection.execute(text("SELECT action, document_id, tenant_id FROM outbox_events ORDER BY id")).all()
    names["engine"].dispose()
    assert [tuple(row) for row in rows] == [
        ("index", "contact-123", "t1"),
        ("update", "contact-123", "t1"),
        ("delete", "contact-124", "t1"),
        ("index", "contact-1", None),
        ("index", "contact-2", None),
    ]


def test_snippet_of_entities_runs_as_it_stands(outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Base(DeclarativeBase):
        pass

    class Account(Base):
        __tablename__ = "accounts"
        id = mapped_column(Integer, primary_key=True)
        name = mapped_column(String)

    class Tag(Base):
        __tablename__ = "tags"
        id = mapped_column(Integer, primary_key=True)
        label = mapped_column(String)
        contact_id = mapped_column(ForeignKey("contacts.id"))

    class Contact(Base):
        __tablename__ = "contacts"
        id = mapped_column(Integer, primary_key=True)
        first_name, email, tenant_id = mapped_column(String), mapped_column(String), mapped_column(String)
        archived = mapped_column(Boolean, default=False)
        account_id = mapped_column(ForeignKey("accounts.id"))
        account, tags = relationship("Account"), relationship("Tag")

    class Deal(Base):
        __tablename__ = "deals"
        id = mapped_column(Integer, primary_key=True)
        account_id = mapped_column(ForeignKey("accounts.id"))

    class WithRelay(OutboxRepository):
        """For which a relay runs."""

        def wait_until_synced(self, *arguments: Any, **options: Any) -> dict[int, str]:
            relay = outbox.relay(destination, registry=self._registry)
            while relay.run_once():
                pass
            waited.update(super().wait_until_synced(*arguments, **options))
            return waited

    Base.metadata.create_all(outbox.engine)
    monkeypatch.setenv("OUTBOX_DESTINATION", "embedded")
    monkeypatch.setenv("OUTBOX_EMBEDDED_PATH", str(tmp_path / "search.db"))
    destination, waited = destination_of(load()), dict[int, str]()
    given = {"Account": Account, "Contact": Contact, "Deal": Deal, "deal_document": dict, "OutboxRepository": WithRelay}
    snippet = README.split("## Entities")[1].split("```python\n")[1].split("```")[0]
    exec(snippet, given | {"Session": sessionmaker(outbox.engine)})
    assert waited == {1: "applied"}
    (hit,) = destination.search("contacts", "ada", tenant="acme")
    destination.close()
    assert (hit.document_id, hit.source["tags"]) == ("4:acme:1", [])
