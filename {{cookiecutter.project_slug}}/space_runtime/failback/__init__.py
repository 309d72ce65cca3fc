"""Moves rows from SQLite to PostgreSQL, each exactly once."""
