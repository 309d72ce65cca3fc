"""Copies of the SQLite file at SNAPSHOT_URL, and their restore."""
