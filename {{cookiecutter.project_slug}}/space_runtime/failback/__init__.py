"""The way of rows from SQLite to PostgreSQL, each exactly once."""
