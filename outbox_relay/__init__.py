"""The command `outbox-relay`: what it does before it loads `outbox`, which takes a moment."""

import os
import signal
from typing import Any


def main() -> None:
    """Run the command line."""
    if os.getpid() == 1:
        # The kernel keeps signals that have no handler from the first process of a container.
        for each in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(each) is signal.SIG_DFL:
                signal.signal(each, _end)
    from outbox.cli import main as command_line

    command_line()


def _end(number: int, _frame: Any) -> None:
    os._exit(128 + number)  # as in any other process; nothing of ours has begun, or it is noticed as after a kill
