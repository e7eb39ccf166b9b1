"""The relay: claim, load, plan, send, decide, settle."""

from outbox.relay.relay import Relay
from outbox.relay.settle import Totals

__all__ = ["Relay", "Totals"]
