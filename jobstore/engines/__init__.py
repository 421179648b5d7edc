"""Engines drive operations: they own connections, transactions and threads, and know nothing of jobs."""
