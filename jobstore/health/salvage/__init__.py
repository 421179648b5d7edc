"""Reads what is left of a damaged SQLite file, page by page, without SQLite; see https://sqlite.org/fileformat2.html.

Scanning ranges of keys with SQL finds nothing below a damaged inner page of a table: some four hundred pages of rows.
Here every page that can be read gives its rows, whoever still refers to it; the file's own map of pages, or the shape
of the rows, says which table they belong to.
"""
