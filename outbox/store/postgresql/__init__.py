"""PostgreSQL, behind the seam."""
