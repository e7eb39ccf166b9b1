"""README and docs/ name every command and every setting, with the default and the range that the code has."""

from __future__ import annotations

import ast
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
from outbox.admin import api
from outbox.admin.alerts import ALERTS
from outbox.admin.screens import api as screens
from outbox.cli import main
from outbox.cli.look import default_text
from outbox.destinations import destination_of
from outbox.destinations.base import (
    DOCUMENT_MISSING,
    FAILURE_STORE,
    ILLEGAL_DOCUMENT,
    NOT_IN_THE_INDEX,
    SOURCE_MISSING,
    OutcomeKind,
)
from outbox.relay.load import UNKNOWN_ENTITY
from outbox.settings import Settings, load, variable
from outbox.store import models
from outbox.store.drift import DriftKind
from outbox.store.models import Action, Result, State
from tests.entities.constructs import CONSTRUCTS
from tests.support.outbox import Outbox
from tests.support.pages import EVERYTHING, PAGES, README, ROOT, anchors, blocks, built, first

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
    exit_codes = PAGES["reference/commands.md"].split("| command | exit codes |")[1].split("\n\n")[0]
    assert f"\n| `{command}" in exit_codes
    assert f"\n## `{command}`\n" in built("reference/commands.md")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_option_without_documentation(command: str) -> None:
    section = built("reference/commands.md").split(f"\n## `{command}`\n")[1].split("\n## ")[0]
    options = [option for option in COMMANDS[command].params if isinstance(option, click.Option)]
    assert [option.opts[0] for option in options if f"| `{option.opts[0]}" not in section] == []


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
        assert row(name).replace("|  |", "| a number and `ms`, `s`, `m`, `h` or `d` |") in built(
            "reference/settings.md"
        )
    else:
        assert row(name) in built("reference/settings.md")


@pytest.mark.parametrize("page", sorted(EVERYTHING))
def test_variable_that_no_setting_reads(page: str) -> None:
    known = {variable(name) for name in Settings.model_fields}
    assert set(re.findall(r"OUTBOX_[A-Z_]+\b", EVERYTHING[page])) <= known


@pytest.mark.parametrize("page", sorted(EVERYTHING))
def test_command_that_does_not_exist(page: str) -> None:
    groups = {command.rpartition(" ")[0] for command in COMMANDS}
    named = {
        match.strip() for match in re.findall(r"(?:`|^)outbox-relay((?: [a-z]+)+)", EVERYTHING[page], re.MULTILINE)
    }
    for words in named:
        command = f"outbox-relay {words}"
        assert command in groups or any(command == each or command.startswith(f"{each} ") for each in COMMANDS), command


@pytest.mark.parametrize("page", sorted(EVERYTHING))
def test_command_line_that_does_not_parse(page: str) -> None:
    for block in blocks(EVERYTHING[page]):
        for line in re.split(r"\n| && |; |\| ", block.content) if block.language in ("sh", "console") else ():
            words = shlex.split(re.split(r" > |  #", line.strip())[0], comments=True) if "outbox-relay " in line else []
            if words[:1] != ["outbox-relay"] or words[1:] == ["--version"]:
                continue
            command = next(each for each in COMMANDS if words[: len(each.split())] == each.split())
            COMMANDS[command].make_context(command, words[len(command.split()) :])  # fails for what it does not know


@pytest.mark.parametrize("kind", [kind for kind in OutcomeKind if kind is not OutcomeKind.CONFLICT])
def test_outcome_without_documentation(kind: OutcomeKind) -> None:
    assert f"| {kind.value} |" in PAGES["reference/outcomes.md"]


ERROR_TYPES = {
    *(models.UNANSWERED, models.RELAY_DIED, models.POISON, models.OVERTAKEN, models.UNEXPLAINED),
    *(models.ILLEGAL_TEXT, DOCUMENT_MISSING, SOURCE_MISSING, ILLEGAL_DOCUMENT, FAILURE_STORE, NOT_IN_THE_INDEX),
    UNKNOWN_ENTITY,
    *re.findall(r'LoadFailed\("(\w+)"', "".join(SOURCES.values())),
    *re.findall(r'OutcomeKind\.\w+,\s+"(\w+)"', SOURCES["relay/load.py"]),
}


def test_error_types_of_our_own_are_all_in_the_table_and_no_others() -> None:
    table = built("reference/outcomes.md").split("| error type |")[1].split("\n\n")[0]
    named = {name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    of_others = re.compile("http_|.*_exception$")
    assert {name for name in named if not of_others.match(name)} == ERROR_TYPES


@pytest.mark.parametrize("action", list(Action))
def test_log_line_of_an_action_without_documentation(action: Action) -> None:
    assert f"`[ES] {action.upper()}" in PAGES["how-to/from-bullmq.md"]
    assert f"\n[ES] {action.upper()} " in PAGES["reference/outcomes.md"]


def messages() -> Iterator[tuple[str, str]]:
    """(file, text) of each text in the code, with 1 for what is filled in, or the option that `chosen` holds."""
    for path, source in SOURCES.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.JoinedStr):
                filled = ("--all" if "id='chosen'" in ast.dump(part) else "1" for part in node.values)
                parts = zip(node.values, filled, strict=True)
                yield path, "".join(str(part.value) if isinstance(part, ast.Constant) else it for part, it in parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path, node.value


def test_message_that_names_a_command_line_which_does_not_parse() -> None:
    named = {(path, line) for path, text in messages() for line in re.findall(r"'(outbox-relay [a-z][^']*)'", text)}
    assert len(named) > 30
    for path, line in sorted(named):
        command = max((each for each in COMMANDS if f"{line} ".startswith(f"{each} ")), key=len)
        try:
            COMMANDS[command].make_context(command, shlex.split(line.removeprefix(command)))
        except click.UsageError as error:
            pytest.fail(f"{path}: '{line}': {error.message}")


def test_readme_that_nobody_reads_in_five_minutes() -> None:
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("page", sorted(page for page in PAGES if page.startswith("how-to/")))
def test_guide_that_the_lists_of_guides_miss(page: str) -> None:
    folder, _, name = page.rpartition("/")
    assert name == "index.md" or f"({name})" in PAGES[f"{folder}/index.md"]


def test_page_that_the_navigation_misses() -> None:
    listed = re.findall(r"^ +- (?:.*: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(PAGES)


@pytest.mark.parametrize("kind", [State, Result])
def test_state_or_result_without_documentation(kind: type[State | Result]) -> None:
    page = PAGES["reference/rows.md" if kind is State else "reference/outcomes.md"]
    table = page.split(f"| `{'state' if kind is State else 'outcome'}` | says |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(kind)


def test_columns_of_the_rows_are_all_in_the_table_and_no_others() -> None:
    table = PAGES["reference/rows.md"].split("| column | holds |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == [column.name for column in models.events.columns]


def test_tables_are_all_named() -> None:
    table = PAGES["reference/rows.md"].split("| table | holds |")[1].split("\n\n")[0]
    named = {"outbox_events", *re.findall(r"^\| `(\w+)`", table, re.MULTILINE)}
    assert named == {*models.metadata.tables, models.VERSION_TABLE}


def test_alerts_are_all_in_the_table_and_no_others() -> None:
    table = PAGES["how-to/dashboard.md"].split("| alert | when |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(ALERTS)


def test_kinds_of_drift_are_all_in_the_table_and_no_others() -> None:
    table = PAGES["how-to/incidents/drift.md"].split("| kind | ")[1].split("\n\n")[0]
    assert re.findall(r"^\| (\w+) \|", table, re.MULTILINE) == list(DriftKind)


def test_route_without_documentation() -> None:
    routes = [*api.routes.routes, *screens.routes.routes]
    named = re.findall(r"^\| `([A-Z]+) (/\S+)` \|", built("reference/admin-api.md"), re.MULTILINE)
    assert {(*each.methods, each.path) for each in routes} == set(named)  # type: ignore[attr-defined]


def test_construct_of_the_mapper_without_its_row() -> None:
    page = built("reference/constructs.md")
    assert [each.name for each in CONSTRUCTS if f"\n| {each.name} | " not in page] == []


def test_command_that_takes_no_database_although_all_but_some_are_said_to() -> None:
    (but,) = re.findall(r"All but ([^.]+) take `--database-url`", PAGES["reference/commands.md"])
    without = [
        path.removeprefix("outbox-relay ")
        for path, command in COMMANDS.items()
        if not any("--database-url" in option.opts for option in command.params)
    ]
    assert sorted(re.findall(r"`([^`]+)`", but)) == sorted(without)


@pytest.mark.parametrize("page", sorted(EVERYTHING))
def test_link_that_leads_nowhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", EVERYTHING[page]):
        path, _, heading = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if heading:
            inside = (
                target.relative_to(ROOT).as_posix() if path == "" else target.resolve().relative_to(ROOT).as_posix()
            )
            assert heading in anchors(EVERYTHING[inside]), link


@pytest.mark.parametrize("page", sorted(EVERYTHING))
def test_file_of_the_project_that_does_not_exist(page: str) -> None:
    for path in re.findall(r"`((?:bin|tests|outbox|examples|deploy|docs|\.ci)/[\w/.-]+)`", EVERYTHING[page]):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", sorted(EVERYTHING))
def test_page_that_needs_a_machine_or_a_network(page: str) -> None:
    assert re.findall(r"/(?:home|work|tmp|Users)/", EVERYTHING[page]) == []
    elsewhere = re.findall(r"https?://(?!127\.0\.0\.1|localhost)[^\s)>\"']+", EVERYTHING[page])
    assert elsewhere == []


@pytest.mark.usefixtures("engine")  # the tables, in app.db of the working directory
def test_first_snippet_runs_as_it_stands() -> None:
    names: dict[str, Engine] = {}
    exec(first(README, "python"), names)
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
    exec(first(PAGES["how-to/entities.md"], "python"), given | {"Session": sessionmaker(outbox.engine)})
    assert waited == {1: "applied"}
    (hit,) = destination.search("contacts", "ada", tenant="acme")
    destination.close()
    assert (hit.document_id, hit.source["tags"]) == ("4:acme:1", [])
