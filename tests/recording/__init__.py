"""Calls to models that are recorded: by workers, by the program's own code, and when processes are killed."""
