"""Real parts for tests, and how long is waited for them."""

import os

LIMIT_S = 180
"""What takes longer is broken: a busy machine needs ten times what an idle one does, and stands still for seconds."""

FACTOR = int(os.environ.get("TEST_FACTOR", "1"))
"""Histories and kill loops are so many times as long: .ci/nightly sets it."""
