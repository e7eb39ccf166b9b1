"""Real parts for tests, and how long is waited for them."""

LIMIT_S = 180
"""What takes longer is broken: a busy machine needs ten times what an idle one does, and stands still for seconds."""
