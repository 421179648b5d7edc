"""The steps of the schema, one folder a database, and the complete SQLite schema in one file.

README.md beside this file is a short guide for those who write a step.
"""
