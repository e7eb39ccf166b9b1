"""Every setting, once. The only reader of the environment."""

from outbox.settings.cron import cron_fields
from outbox.settings.model import (
    HEARTBEATS_MISSED,
    LEASE_MARGIN_S,
    LONGEST_LEASE_S,
    PREFIX,
    Settings,
    WriteSettings,
    variable,
)
from outbox.settings.reading import PATHS, SECRET, exported, load, unknown_variables, write_settings
from outbox.settings.spans import SPAN, span_ms

__all__ = [
    "HEARTBEATS_MISSED",
    "LEASE_MARGIN_S",
    "LONGEST_LEASE_S",
    "PATHS",
    "PREFIX",
    "SECRET",
    "SPAN",
    "Settings",
    "WriteSettings",
    "cron_fields",
    "exported",
    "load",
    "span_ms",
    "unknown_variables",
    "variable",
    "write_settings",
]
