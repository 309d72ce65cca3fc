"""SQLite files: where they can live, who may use them, and which wait for PostgreSQL."""
