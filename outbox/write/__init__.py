"""The write side: what happens inside the application's own transaction."""
