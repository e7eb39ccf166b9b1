"""The relay: claim, load, plan, send, decide, settle."""

from outbox.relay.relay import Relay, Totals

__all__ = ["Relay", "Totals"]
