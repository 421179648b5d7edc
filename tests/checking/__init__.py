"""Backups, restoring, resetting, and who has a database to itself."""
