"""`outbox-relay reindex` at the terminal: what it asks for, what it says, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox import check
from outbox.store import jobs
from tests.reindex.world import FIRST, SECOND, Backup, Command, World, command_of, in_a_file
from tests.support.models import Company
from tests.support.outbox import Outbox

registry = World.registered(tenancy="prefixed")
two = World.registered(tenancy="prefixed")
two.add(Company, index="companies", fields=["name"])


@pytest.fixture
def world(outbox: Outbox, tmp_path: Path) -> Iterator[World]:
    with in_a_file(outbox, tmp_path, 3) as made:
        yield made


@pytest.fixture
def command(world: World) -> Command:
    return command_of(world, f"{__name__}:registry")


def left_at(world: World, phase: str) -> None:
    """Somebody began, and went away."""
    steps = world.steps({})
    while next(steps).phase != phase:
        pass
    steps.close()


def test_without_a_selection_help_is_shown(command: Command) -> None:
    result = command("reindex")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--entity" in result.stderr


def test_index_is_rebuilt_and_the_steps_are_told_line_by_line(command: Command, world: World) -> None:
    result = command("reindex", "--entity", "contacts")
    assert result.exit_code == 0
    assert "index contacts: 3 documents in" in result.stdout
    assert "readers get contacts-000002" in result.stdout
    assert [line.split()[1] for line in result.stderr.splitlines()] == [
        "create", "scan", "sweep", "check", "swap", "drop",
    ]  # fmt: skip
    world.assert_in_step()
    as_json = command("reindex", "--all", "--json")
    lines = [json.loads(line) for line in as_json.stdout.splitlines()]
    assert (lines[-1]["state"], lines[-1]["documents"], lines[-1]["new_index"]) == ("done", 3, "contacts-000003")
    assert lines[0]["phase"] == "create"


def test_index_that_cannot_be_rebuilt_keeps_no_other_from_its_turn(world: World) -> None:
    command = command_of(world, f"{__name__}:two")
    with world.sessions.begin() as session:
        session.add(Company(code="Ltd", region=1, name="Analytical Engines"))
    assert command("reindex", "--all", "--keep-old").exit_code == 0
    world.place.destination.drop_index("contacts-000001")
    world.place.destination.drop_index("contacts-000002")
    told = command("reindex", "--all")
    assert told.exit_code == 1
    assert "index companies still keeps companies-000001" in told.stderr
    assert "readers get contacts-000003" in told.stdout
    world.assert_in_step("contacts-000003")
    told = command("reindex", "--all", "--keep-old")
    assert "index companies still keeps" in told.stderr
    told = command("reindex", "--all")
    assert (told.exit_code, "2 indexes failed, the first: index contacts still keeps" in told.stderr) == (1, True)
    assert "index companies: index companies still keeps companies-000001" in told.stderr


def test_reindex_that_is_resumed_says_that_it_is(command: Command, world: World) -> None:
    left_at(world, "sweep")
    told = command("reindex", "--entity", "contacts")
    assert told.exit_code == 0
    assert "resumes reindex 1 of contacts (into contacts-000002) at step 'sweep', 3 of 3 rows" in told.stderr
    assert "'outbox-relay reindex --cancel 1' first, to begin anew" in told.stderr
    assert "resumes" not in command("reindex", "--entity", "contacts").stderr


def test_dry_run_counts_and_changes_nothing(command: Command, world: World) -> None:
    result = command("reindex", "--all", "--dry-run")
    assert (result.exit_code, result.stdout) == (0, "index contacts: 3 rows of contacts, into a new index\n")
    assert "in place" in command("reindex", "--entity", "contacts", "--tenant", "t1", "--dry-run").stdout
    assert jobs.every(world.store) == []
    assert world.place.indexes() == ["contacts-000001"]


def test_nothing_to_resume_is_no_failure(command: Command) -> None:
    result = command("reindex", "--resume")
    assert (result.exit_code, result.stdout) == (0, "nothing to resume\n")
    result = command("reindex", "--resume", "--json")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "nothing to resume\n")


@pytest.mark.parametrize("narrowed", [("--tenant", "t1"), ("--from-date", "2026-11-01")])
@pytest.mark.parametrize("act", [("--resume",), ("--cancel", "1"), ("--list",)])
def test_part_of_a_job_cannot_be_asked_for(command: Command, act: tuple[str, ...], narrowed: tuple[str, ...]) -> None:
    result = command("reindex", *act, *narrowed)
    assert (result.exit_code, "leave --tenant and --from-date out" in result.stderr) == (2, True)


def test_what_was_left_is_told_by_status_check_and_list_and_gone_on_with(command: Command, world: World) -> None:
    left_at(world, "sweep")
    assert "ABANDONED  → outbox-relay reindex --resume, or --cancel 1" in command("status").stdout
    (found,) = json.loads(command("status", "--json").stdout)["reindexes"]
    assert (found["index_name"], found["abandoned"]) == ("contacts", True)
    findings = {each.name: each for each in check.database(world.outbox.engine)}
    assert (findings["reindex"].level, "--cancel 1" in findings["reindex"].remedy) == ("warn", True)
    assert "ABANDONED" in command("reindex", "--list").stdout
    assert command("reindex", "--resume").exit_code == 0
    world.assert_in_step()
    assert "done, 3 documents" in command("reindex", "--list").stdout
    assert "reindex" not in {each.name for each in check.database(world.outbox.engine)}


def test_job_is_cancelled_by_its_number_without_a_registry(command: Command, world: World) -> None:
    left_at(world, "scan")
    result = command("reindex", "--cancel", "1", OUTBOX_ENTITIES=None)
    assert (result.exit_code, "is cancelled" in result.stdout) == (0, True)
    world.assert_in_step("contacts-000001")
    assert (command("reindex", "--cancel", "7").exit_code, command("reindex", "--cancel", "1").exit_code) == (1, 1)


def test_what_other_programs_ask_for_is_json_in_every_line(command: Command, world: World) -> None:
    def told(*arguments: str) -> list[dict[str, object]]:
        result = command("reindex", *arguments, "--json")
        assert result.exit_code == 0, result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()]

    left_at(world, "scan")
    (cancelled,) = told("--cancel", "1")
    assert (cancelled["id"], cancelled["state"]) == (1, "cancelled")
    assert told("--entity", "contacts", "--keep-old")[-1]["new_index"] == "contacts-000003"
    back = {"index": "contacts", "live": "contacts-000001", "refused": 0}
    assert told("--entity", "contacts", "--rollback") == [back]
    assert told("--all", "--drop-old") == [{"index": "contacts", "removed": "contacts-000003"}]


def test_way_back_and_its_end(command: Command, world: World) -> None:
    assert "'--rollback' returns to it" in command("reindex", "--entity", "contacts", "--keep-old").stdout
    world.save(1, "after the swap")
    world.deliver()
    assert "contacts-000001 again" in command("reindex", "--entity", "contacts", "--rollback").stdout
    world.assert_in_step("contacts-000001")
    assert "contacts-000002 is removed" in command("reindex", "--all", "--drop-old").stdout
    result = command("reindex", "--entity", "contacts", "--rollback")
    assert (result.exit_code, "keeps no old one" in result.stderr) == (1, True)


def assert_goes_on_after_a_restore(command: Command, world: World) -> None:
    world.save(2, "after the restore")
    assert command("run", "--drain").exit_code == 0
    assert world.place.documents("contacts")["2:t1:2"]["name"] == "after the restore"
    assert command("verify", "--repair").exit_code == 1  # what was changed after the backup
    assert command("run", "--drain").exit_code == 0
    assert command("verify").exit_code == 0
    world.assert_in_step()


@pytest.mark.sqlite
def test_database_restored_from_before_the_last_reindex_finds_its_index_again(command: Command, world: World) -> None:
    backup = Backup(world.outbox)
    backup.take()
    world.save(1, "after the backup")
    world.save(4, "after the backup")
    world.rebuild()
    backup.restore()
    (found,) = check.indexes(world.outbox.engine, world.place.destination, "24h")
    assert (found.level, "run 'outbox-relay epoch advance'" in found.remedy) == ("fail", True)
    said = command("epoch", "advance", "--yes").stdout
    assert f"rows of index contacts go to {SECOND} now, as its readers do, no longer to {FIRST}" in said
    (found,) = check.indexes(world.outbox.engine, world.place.destination, "24h")
    assert found.level == "ok"
    assert_goes_on_after_a_restore(command, world)
    assert command("reindex", "--all").exit_code == 0
    world.assert_in_step("contacts-000003")


@pytest.mark.sqlite
def test_database_restored_from_before_a_reindex_that_kept_the_old_index_goes_on(
    command: Command, world: World
) -> None:
    backup = Backup(world.outbox)
    backup.take()
    assert command("reindex", "--entity", "contacts", "--keep-old").exit_code == 0
    world.save(1, "after the backup")
    world.deliver()
    backup.restore()
    *_, found = check.indexes(world.outbox.engine, world.place.destination, "24h")
    assert (found.level, "run 'outbox-relay epoch advance'" in found.remedy) == ("fail", True)
    said = command("epoch", "advance", "--yes").stdout
    assert f"rows of index contacts go to {SECOND} now, as its readers do, no longer to {FIRST}" in said
    assert_goes_on_after_a_restore(command, world)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--entity", "contact"], "did you mean 'contacts'"),
        (["--entity", "contacts", "--from-date", "soon"], "is not a date"),
        (["--entity", "contacts", "--all"], "do not go together"),
        (["--all", "--drop-old", "--tenant", "t1"], "leave --tenant and --from-date out"),
        (["--resume", "--list"], "--resume and --list do not go together"),
        (["--entity", "contacts", "--rate", "0"], "--rate"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_ends_with_2(command: Command, arguments: list[str], said: str) -> None:
    result = command("reindex", *arguments)
    assert (result.exit_code, said in result.stderr) == (2, True)


def test_tenant_that_is_nowhere_is_one_line_and_ends_with_1(command: Command) -> None:
    result = command("reindex", "--entity", "contacts", "--tenant", "t9")
    assert (result.exit_code, "there is no tenant 't9'; there are t1" in result.stderr) == (1, True)


def test_registry_is_asked_for(command: Command) -> None:
    result = command("reindex", "--all", OUTBOX_ENTITIES=None)
    assert (result.exit_code, "set OUTBOX_ENTITIES" in result.stderr) == (2, True)


@pytest.mark.sqlite
def test_document_that_is_refused_in_place_ends_with_1(command: Command, world: World) -> None:
    world.outbox.raw("UPDATE contacts SET changed = 'no date' WHERE id = 2")
    result = command("reindex", "--entity", "contacts", "--in-place")
    assert (result.exit_code, "1 document could not be written" in result.stderr) == (1, True)
