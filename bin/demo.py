"""What bin/demo shows: a CRM at work, a relay that is killed half-way, an index that an operator pauses, searches, the
audit, and a comparison of both sides.

The application is `examples/crm.py`: look there for how the library is used. Here it is only driven and watched.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import demo_database
import demo_serve
from demo_processes import OUTBOX_RELAY, Relay, Tick
from demo_proof import INDEXES, Comparison, client_of, compare
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from outbox import settings

if TYPE_CHECKING:
    from demo_day import Day  # else within: the CRM opens the database of the working directory

BIN = Path(__file__).parent.absolute()
EXAMPLES = [BIN.parent / "examples" / name for name in ("crm.py", "crm_api.py")]
STANDARD = BIN.parent / ".demo"
CHANGES, IMPORTED = 300, 500  # changes before the kill, and again after it; contacts of the import that it ends
PAUSED, WHILE_PAUSED = "demo-deals", 100  # an index that an operator holds back, during so many changes

SEARCHES = [
    ("Two names, both misspelt", "demo-contacts", "harisch krisnamurthy", "--limit 2"),
    ("The beginning of one", "demo-contacts", "bhattach", "--limit 2"),
    ("A name, and a word of the notes", "demo-contacts", "tanaka samples", "--tenant acme --limit 2"),
    ("A deal, by what it is about and where", "demo-deals", "pilot gdansk", "--limit 2"),
]

MEANING = {
    "applied": "the index took them",
    "deleted": "the document is gone",
    "coalesced": "merged into a later row of the same document",
    "superseded": "came again after the kill; the index had them already",
    "dead": "[red]given up[/]",
}

console = Console(highlight=False)
console.width = min(console.width, 80)


@click.command()
@click.option("--elasticsearch", is_flag=True, help="On a real node instead of the embedded destination.")
@click.option("--postgres", is_flag=True, help="With a PostgreSQL of its own instead of a file of SQLite.")
@click.option("--triggers", is_flag=True, help="Triggers of the database note changes, not the CRM's sessions.")
@click.option("--serve", "stay", is_flag=True, help="Leave web API, relay, dashboard and a load running until Ctrl-C.")
@click.option("--compare", "only_compare", is_flag=True, help="Only compare again what the last demo left there.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=STANDARD,
    help="Where its files go. Default: .demo in the checkout.",
)
def main(elasticsearch: bool, postgres: bool, triggers: bool, stay: bool, only_compare: bool, directory: Path) -> None:
    """A small CRM whose contacts, accounts and deals can be found, whatever happens to the relay.

    Exits 1 if the indexes and the database differ in anything.
    """
    directory = directory.absolute()
    started_in = Path.cwd()
    in_the_way = set_aside_settings(elasticsearch or only_compare)
    if only_compare:
        enter(directory)
        if not demo_database.is_there():
            raise click.ClickException("the PostgreSQL of that demo has ended with it; run bin/demo --postgres again")
        sys.exit(0 if show_comparison(compare(settings.load())) else 1)
    if stay:
        demo_serve.on_any_signal(signal.default_int_handler)
    what_is_shown = "people at work, until Ctrl-C" if stay else "a relay that is killed half-way"
    console.print(f"[bold]A CRM, its search index, and {what_is_shown}[/]\n")
    with ExitStack() as stack:
        destination = {"OUTBOX_DESTINATION": "embedded", "OUTBOX_EMBEDDED_PATH": "search.db"}
        given = os.environ.get("OUTBOX_ELASTICSEARCH_URL") or os.environ.get("ELASTICSEARCH_URL")
        if elasticsearch:
            from node import node

            destination = {"OUTBOX_ELASTICSEARCH_URL": stack.enter_context(node(console))}
        directory.mkdir(parents=True, exist_ok=True)
        database = stack.enter_context(demo_database.postgres(console, directory)) if postgres else demo_database.FILE
        prepare(directory, database, destination, triggers)
        if stay:
            demo_serve.serve(console)
            return
        equal = show("Elasticsearch" if elasticsearch else "search.db", foreign_tool=triggers)
    if equal:
        gone = "PostgreSQL" if postgres else "node" if elasticsearch and not given else ""
        say_what_to_try(started_in, directory, in_the_way, gone)
    sys.exit(0 if equal else 1)


# -- its place -----------------------------------------------------------------------------------------------------


def set_aside_settings(keep_node: bool) -> list[str]:
    """Settings in the environment are another application's; only those of a node may be meant for the demo.

    Returns the names of all of them.
    """
    names = sorted(name for name in os.environ if name.startswith(("OUTBOX_", "ELASTICSEARCH_URL")))
    for name in names:
        if not (keep_node and "ELASTICSEARCH" in name):
            del os.environ[name]
    return names


def prepare(directory: Path, database: str, destination: dict[str, str], triggers: bool) -> None:
    """A directory with the application, its settings in `.env`, and a database with all tables."""
    for pattern in ("crm.*", "crm_api.py", "search.*", "relay.log", "api.log", ".env"):
        for left in directory.glob(pattern):
            left.unlink()
    for example in EXAMPLES:
        shutil.copy(example, directory)
    lines = {"OUTBOX_DATABASE_URL": database, "OUTBOX_ENTITIES": "crm:registry", **destination}
    (directory / ".env").touch(0o600)  # the address of a node or a database may hold a password
    (directory / ".env").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    enter(directory)
    import crm  # not above: it opens the database of the working directory

    crm.Base.metadata.create_all(crm.engine)
    for command in ["migrate"], *([["triggers", "install"]] if triggers else []):
        subprocess.run([OUTBOX_RELAY, *command], check=True, stdout=subprocess.DEVNULL)
    if "OUTBOX_ELASTICSEARCH_URL" in destination:
        with client_of(settings.load()) as client:
            for index in INDEXES:  # what an earlier demo left on the same node
                for name in client.indices.get(index=f"{index}-0*"):
                    client.indices.delete(index=name)


def enter(directory: Path) -> None:
    """From here on `.env`, `crm.py` and `crm.db` are those of the demo."""
    if not (directory / ".env").exists():
        raise click.ClickException(f"there is no demo in {directory}; run bin/demo first")
    os.chdir(directory)
    sys.path.insert(0, str(directory))


# -- the show ------------------------------------------------------------------------------------------------------


def show(destination: str, *, foreign_tool: bool) -> bool:
    """The whole of it, step by step. Returns whether both sides are equal at the end."""
    from demo_day import Day  # not above: the CRM opens the database of the working directory

    day = Day()
    with Relay() as relay:
        step(f"Relay {relay.start()} is started. It delivers from {demo_database.name()} to {destination}.")
        with watching(relay, "new accounts") as tick:
            transactions = day.new_accounts(tick)
        found = ", ".join(f"{number:,} {what}" for what, number in day.counts().items())
        step(f"{found}: written in {transactions} transactions.")
        with watching(relay, "people change this and that") as tick:
            day.work(CHANGES, tick)
        step(f"{CHANGES} changes: people come, change and leave, deals move on or are dropped.")
        if foreign_tool:
            step(f"{day.foreign_tool():,} rows are changed by plain SQL: no session sees it, triggers note it.")
        day.import_contacts(IMPORTED)
        pid, held = relay.kill_while_it_delivers()
        step(f"{IMPORTED} contacts are imported. While it delivers them, with {held:,} rows in hand,")
        console.print(f"   [red]relay {pid} is killed[/] (SIGKILL).")
        with watching(relay, "[red]no relay[/]: the CRM continues") as tick:
            slowest = day.work(CHANGES, tick)
        step(
            f"{CHANGES} changes without a relay: the slowest took {slowest * 1000:.0f} ms, "
            f"{relay.unfinished():,} rows wait."
        )
        step(f"Relay {relay.start()} is started.")
        began = time.monotonic()
        with watching(relay, "[green]it catches up[/]") as tick:
            relay.wait_until_all_is_delivered(tick)
        step(f"[green]Everything is delivered[/], {time.monotonic() - began:.1f} s later.")
        show_pause(day, relay)
        name, seconds = day.last_customer()
        step(f"A new customer, {name}, can be found {seconds * 1000:.0f} ms after the commit.")
        for what, index, query, options in SEARCHES:
            search(what, index, query, options)
        outcomes = relay.outcomes()
    console.print("\n[bold]What became of the rows of the outbox?[/]\n")
    for outcome, number in outcomes.items():
        console.print(f" {number:>6,} {outcome:<12} {MEANING.get(outcome, '')}")
    console.print("\n[bold]Who has done what?[/] Every command, call and button is in the audit.\n")
    console.print("$ outbox-relay audit")
    sys.stdout.flush()
    subprocess.run([OUTBOX_RELAY, "audit"], check=True)
    dead = outcomes.get("dead", 0)
    if dead:
        console.print(f"[red]{dead:,} rows are dead.[/] What they died of: cd {Path.cwd()}; {OUTBOX_RELAY} dead list")
    return show_comparison(compare(settings.load())) and not dead


def show_pause(day: Day, relay: Relay) -> None:
    """An operator holds one index back: its rows wait, those of the others flow."""
    step("An operator holds the deals back, and says why:")
    operate("pause", "--index", PAUSED, "--reason", "new prices")
    with watching(relay, f"{PAUSED} is paused") as tick:
        day.work(WHILE_PAUSED, tick)
        relay.wait_until_all_is_delivered(tick, but=PAUSED)
    step(f"{WHILE_PAUSED} changes: contacts and accounts flow, {relay.unfinished():,} rows of {PAUSED} wait.")
    operate("resume", "--index", PAUSED)
    with watching(relay, f"{PAUSED} is resumed") as tick:
        relay.wait_until_all_is_delivered(tick)
    step("[green]These are delivered, too.[/]")


def operate(*words: str) -> None:
    """A command of an operator; what it prints is longer than a line."""
    console.print(f"   $ outbox-relay {shlex.join(words)}", soft_wrap=True)
    subprocess.run([OUTBOX_RELAY, *words], check=True, stdout=subprocess.DEVNULL)


def step(what: str) -> None:
    console.print(f"[dim]•[/]  {what}")


def search(what: str, index: str, query: str, options: str) -> None:
    """As a user would do it: the command, and what it prints."""
    console.print(f"\n[bold]{what}[/]")
    console.print(f"$ outbox-relay search {index} {shlex.quote(query)} {options}", soft_wrap=True)
    sys.stdout.flush()
    subprocess.run([OUTBOX_RELAY, "search", index, query, *options.split()], check=True)


def show_comparison(comparisons: list[Comparison]) -> bool:
    """The table, and the verdict in words. Returns whether all is equal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("index")
    table.add_column("tenant")
    table.add_column(f"rows in {demo_database.name()}", justify="right")
    table.add_column("documents", justify="right")
    table.add_column("")
    for each in comparisons:
        verdict = f"[red]✗ {len(each.different):,} differ[/]" if each.different else "[green]✓ equal[/]"
        table.add_row(each.index, each.tenant, f"{each.rows:,}", f"{each.documents:,}", verdict)
    console.print("\n[bold]Do the indexes hold what the database holds?[/]", table, sep="\n")
    different = [line for each in comparisons for line in each.different]
    for line in different[:10]:
        console.print(f"[red]✗[/] {escape(line)}")
    if different:
        documents = "1 document is" if len(different) == 1 else f"{len(different):,} documents are"
        console.print(f"[red]Different.[/] {documents} not what the database says.")
        return False
    console.print(
        f"[green]Equal.[/] {sum(each.documents for each in comparisons):,} documents were read and compared with "
        "their rows, field by field:\nnothing is lost, nothing is left over, and no tenant has anything of another."
    )
    return True


def say_what_to_try(started_in: Path, directory: Path, in_the_way: list[str], gone: str) -> None:
    """Commands that can be pasted, in the directory where the demo was started. `gone`: what has ended with it."""
    near = directory == STANDARD
    bin_, demo = (
        ("../.venv/bin", "../bin/demo")
        if near
        else (
            shlex.quote(str(OUTBOX_RELAY.parent)),
            shlex.quote(str(BIN / "demo")),
        )
    )
    lines = [f"unset {' '.join(in_the_way)}"] if in_the_way else []
    lines += [
        f"cd {shlex.quote(os.path.relpath(directory, started_in))}",
        "less crm.py       # the application",
        "less relay.log    # what both relays logged",
    ]
    if gone == "PostgreSQL":
        console.print("\nPostgreSQL has ended with the demo; with --serve it stays until Ctrl-C.")
        lines.append(f"{demo} --postgres --serve{'' if near else ' --directory .'}")
    elif gone:
        console.print("\nThe node has ended with the demo; bin/elasticsearch runs one that stays.")
        lines.append(f"{bin_}/outbox-relay status")
    else:
        lines += [
            f"{bin_}/outbox-relay status",
            f"{bin_}/python -c '",
            "import crm",
            "with crm.Sessions.begin() as session:",
            '    crm.change_account(session, session.get_one(crm.Account, 1), name="Kite and Sons")\'',
            f"{bin_}/outbox-relay run --drain",
            f"{bin_}/outbox-relay search demo-contacts kite",
            f"{bin_}/outbox-relay verify",
            f"{demo} --compare{'' if near else ' --directory .'}",
        ]
    console.print("\n[bold]To try next[/]")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


@contextmanager
def watching(relay: Relay, what: str) -> Iterator[Tick]:
    """On a terminal: a bar of what is delivered of all that is written, until the step is done."""
    columns = (TextColumn(f"   {what:<34}"), BarColumn(22), MofNCompleteColumn(), TextColumn("rows delivered"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        last = 0.0

        def tick() -> None:
            nonlocal last
            if bar.disable or time.monotonic() - last < 0.05:
                return
            last = time.monotonic()
            counts = relay.counts()
            bar.update(task, completed=counts.get("done", 0), total=sum(counts.values()))

        yield tick


if __name__ == "__main__":
    main()
