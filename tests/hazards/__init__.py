"""What stands around relays and writers of a PostgreSQL fails or is in the way: the index is what was committed."""
