"""The operations: what the store does, written once for every engine. One module a table; none does any I/O."""
