"""What sessions do, on each kind of database."""

import pytest

ON_SQLITE = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
"""Of a test that is about what SQLite alone does, or for what is there for SQLite alone."""
