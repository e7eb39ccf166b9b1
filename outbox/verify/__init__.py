"""Compares the documents of the database with those of the indexes, on demand or on a schedule, and repairs them."""

from outbox.verify.drift import Drift
from outbox.verify.repair import lost
from outbox.verify.verification import MOST_SHARES, Checked, Totals, Verification, share

__all__ = ["MOST_SHARES", "Checked", "Drift", "Totals", "Verification", "lost", "share"]
