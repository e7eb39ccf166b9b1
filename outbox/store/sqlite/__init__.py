"""All that only SQLite understands."""
