"""Copies of SQLite at SNAPSHOT_URL, and the way back."""
