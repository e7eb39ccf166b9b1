"""What bin/demo --serve leaves running: the CRM's web API, a relay with its dashboard, and people at work."""

from __future__ import annotations

import http.client
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import click
import demo_database
from demo_processes import Process, Relay
from rich.console import Console

API_PORT, DASHBOARD_PORT = 8000, 8321  # others, if these are taken
STARTED_WITHIN_S = 60
LONGEST_PAUSE_S = 0.5

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


def on_any_signal(handler: Handler) -> None:
    """A closed terminal or a SIGTERM shall mean the same as Ctrl-C: the end of the demo, with all that it started."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, handler)


def serve(console: Console) -> None:
    """Until Ctrl-C. Raises `ClickException` when one of the processes ends unexpectedly."""
    from demo_day import Day  # not above: the CRM opens the database of the working directory
    from node import free_port  # not above: it loads the client of Elasticsearch

    day = Day()
    api_port, dashboard_port = free_port(API_PORT), free_port(DASHBOARD_PORT)
    uvicorn = [sys.executable, "-m", "uvicorn", "crm_api:app", "--port", str(api_port)]
    with Relay("--admin", OUTBOX_ADMIN_PORT=str(dashboard_port)) as relay, Process("api", uvicorn) as api:
        try:
            relay.start()
            api.start()
            with console.status("a CRM of 240 accounts is being filled…"):
                day.new_accounts(relay.check)
                relay.wait_until_all_is_delivered(api.check)
                wait_for(api, api_port, "/docs")
                wait_for(relay, dashboard_port, "/")
            for line in (
                f"Web API      http://127.0.0.1:{api_port}/docs",
                f"Dashboard    http://127.0.0.1:{dashboard_port}/",
                *([] if demo_database.name() == "crm.db" else [f"Database     psql {demo_database.for_psql()}"]),
                f"A search     curl -H 'X-Tenant: acme' 'http://127.0.0.1:{api_port}/search?q=tanaka'",
                "",
                "People change something a few times a second. Now and then someone mistypes a",
                "number that the index refuses: that row is dead, and the dashboard shows it.",
                "Ctrl-C ends it all.",
            ):
                console.print(line, markup=False, soft_wrap=True)
            sys.stdout.flush()
            people_at_work(day.moment, console, relay, api)
        except KeyboardInterrupt:
            on_any_signal(signal.SIG_IGN)  # once is enough: what runs is being ended
    console.print("\nAll of it has ended.")


def people_at_work(change: Callable[[int], None], console: Console, relay: Relay, api: Process) -> None:
    """A steady trickle of changes, for as long as both processes run."""
    number = 0
    with console.status("") as status:
        while True:
            change(number)
            number += 1
            for each in (relay, api):
                each.check()
            status.update(f"changes: {number:,}, dead rows: {relay.dead():,}")
            time.sleep(random.uniform(0, LONGEST_PAUSE_S))


def wait_for(process: Process, port: int, path: str) -> None:
    """Until it answers."""
    deadline = time.monotonic() + STARTED_WITHIN_S
    while time.monotonic() < deadline:
        process.check()
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    return
            finally:
                connection.close()
        time.sleep(0.05)
    raise click.ClickException(f"the {process.name} does not answer on port {port}; see {process.log}")
