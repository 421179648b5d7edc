"""Repositories bind operations to an open store: one for each kind of thing that it keeps."""
