"""Options that several commands have."""

from __future__ import annotations

import click

NUMBER = click.IntRange(1, 2**63 - 1)
"""Of a row or a job: what a table can have."""

database_option = click.option("--database-url", metavar="URL", help="Instead of OUTBOX_DATABASE_URL.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for other programs.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
