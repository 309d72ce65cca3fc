"""SQLite files: where they are, which one serves, and which wait for PostgreSQL."""
