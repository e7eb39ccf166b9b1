"""`outbox-relay`: the command line. One file for each group of commands, and what they share:

    wiring       settings become parts: the log, the database's engine, the outbox tables
    entities     the application's registry of entities, as OUTBOX_ENTITIES names it
    options      options that several commands have
    signals      what SIGTERM, SIGHUP and Ctrl-C do
    audit        who acted, and the log of what was removed for good
    jobs         a job of a reindex, as status and reindex show it
    interpreter  how Python behaves in a process that works for long

Errors become one line and an exit code here, see `Main`.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import click

from outbox import __version__, logs
from outbox.errors import DestinationUnanswered, OutboxError


class Main(click.Group):
    """Turns errors into one line: exit 2 for what must be corrected first, 1 for what failed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Raises `UsageError` for bytes that are no UTF-8: Python has them as surrogates, which no database takes."""
        for each in args:
            try:
                each.encode()
            except UnicodeEncodeError:
                raise click.UsageError(f"{logs.safe(each)!r} is no UTF-8 text", ctx) from None
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        _open_closed_streams()
        try:
            return super().invoke(ctx)
        except OutboxError as error:
            where = "; 'outbox-relay check' says more" if isinstance(error, DestinationUnanswered) else ""
            click.echo(f"error: {logs.safe(str(error))}{where}", err=True)
            sys.exit(error.exit_code)
        except FileNotFoundError:
            if _has_working_directory():
                raise
            click.echo("error: the working directory was removed: change to one that exists", err=True)
            sys.exit(2)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            click.echo(f"error: the output cannot be written: {error.strerror}", err=True)
            sys.stdout = None  # it would be written once more at the end
            sys.exit(1)


def _open_closed_streams() -> None:
    """Python has none for those that were closed by what started the process (`2>&-`)."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115  (for as long as the process lives)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115


def _has_working_directory() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="outbox-relay")
def main() -> None:
    """Keep Elasticsearch exactly in step with your database.

    \b
    First:       outbox-relay settings           what can be set, and its meaning
                 outbox-relay migrate            create or update the tables
                 outbox-relay run                deliver, until stopped
                 outbox-relay check              is everything as it should be?
    Production:  outbox-relay systemd            a unit that keeps a relay running
                 outbox-relay serve              dashboard, admin API, metrics
                 outbox-relay monitoring export  alerts, a dashboard for Grafana
    Look:        outbox-relay status             what waits and why, and relays
                 outbox-relay show               one row, and what became of it
                 outbox-relay search             what does an index find?
    Entities:    outbox-relay verify             does an index match the database?
                 outbox-relay reindex            rebuild it, under traffic
                 outbox-relay mappings apply     add to it what is registered
                 outbox-relay triggers install   note changes past the ORM, too
                 outbox-relay tenant drop        remove everything of one tenant
    In trouble:  outbox-relay dead list          what was given up, and why
                 outbox-relay pause|resume       stop delivery, start it again
                 outbox-relay purge              remove pending rows for good
                 outbox-relay epoch advance      after a restore from a backup
                 outbox-relay audit              what operators did, and who

    Settings are environment variables OUTBOX_… or lines of a file .env.

    Exit codes: 0 done · 1 something failed, or needs attention · 2 wrong usage, settings or database.
    """
    if os.environ.get("NO_COLOR"):  # no-color.org; click itself does not look
        click.get_current_context().color = False


from outbox.cli import (  # noqa: E402  (they register themselves on the group)
    audit,
    check,
    control,
    dead,
    look,
    mappings,
    monitoring,
    pauses,
    reindex,
    run,
    search,
    serve,
    systemd,
    tenant,
    triggers,
    verify,
)

for module in (
    *(run, serve, monitoring, look, check, search, verify, reindex, mappings),
    *(dead, pauses, control, audit, tenant, triggers, systemd),
):
    for each in module.commands:
        main.add_command(each)
