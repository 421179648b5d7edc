"""The helpers for authors of steps."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from jobstore.migrate.helpers import has_column, has_table, rebuild_table

ZOO = """
    CREATE TABLE keepers (id INTEGER PRIMARY KEY, name TEXT);
    CREATE TABLE animals (
        id INTEGER PRIMARY KEY, name TEXT, kind TEXT,
        keeper_id INTEGER REFERENCES keepers (id), mother_id INTEGER REFERENCES animals (id));
    CREATE TABLE meals (animal_id INTEGER NOT NULL REFERENCES animals (id) ON DELETE CASCADE, food TEXT);
    CREATE TABLE log (text TEXT);
    CREATE INDEX animals_by_name ON animals (name) WHERE kind = 'ape';
    CREATE UNIQUE INDEX animals_unique ON animals (kind, name);
    CREATE TRIGGER animals_logged AFTER INSERT ON animals BEGIN INSERT INTO log VALUES ('animal; ' || NEW.name); END;
    CREATE TRIGGER meals_logged AFTER INSERT ON meals
    BEGIN INSERT INTO log SELECT 'meal of ' || name FROM animals WHERE id = NEW.animal_id; END;
    CREATE VIEW apes AS SELECT name FROM animals WHERE kind = 'ape';
    CREATE TRIGGER apes_added INSTEAD OF INSERT ON apes
    BEGIN INSERT INTO animals (name, kind) VALUES (NEW.name, 'ape'); END;
    INSERT INTO keepers VALUES (7, 'Kim');
    INSERT INTO animals VALUES (1, 'Ada', 'ape', 7, NULL), (2, 'Bob', 'ape', 7, 1), (3, NULL, 'bat', NULL, NULL);
    INSERT INTO meals VALUES (1, 'figs'), (2, 'nuts');
    DELETE FROM log;
"""
NEW_ANIMALS = """
    CREATE TABLE {table} (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL DEFAULT 'none',
        keeper_id INTEGER REFERENCES keepers (id), mother_id INTEGER REFERENCES {table} (id),
        legs INTEGER NOT NULL DEFAULT 4) STRICT
"""


@pytest.fixture
def zoo() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.executescript(ZOO)
        connection.execute("BEGIN")
        yield connection


def rebuild_animals(zoo: sqlite3.Connection) -> None:
    rebuild_table(zoo, "animals", NEW_ANIMALS, {"name": "coalesce(name, '?')"})


def names_of(connection: sqlite3.Connection, kind: str) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = ?", (kind,))}


@pytest.mark.parametrize(
    ("table", "there"), [("animals", True), ("ANIMALS", True), ("apes", False), ("animals_by_name", False), ("", False)]
)
def test_has_table_finds_tables_and_nothing_else(zoo: sqlite3.Connection, table: str, there: object) -> None:
    assert has_table(zoo, table) is there


@pytest.mark.parametrize(
    ("table", "column", "there"),
    [
        ("animals", "name", True),
        ("Animals", "NAME", True),
        ("animals", "legs", False),
        ("ghosts", "name", False),
        ("squares", "side", True),
        ("squares", "area", True),
        ("squares", "volume", True),
    ],
)
def test_has_column_finds_ordinary_and_generated_columns(
    zoo: sqlite3.Connection, table: str, column: str, there: object
) -> None:
    zoo.execute("CREATE TABLE squares (side REAL, area AS (side * side), volume AS (side * side * side) STORED)")
    assert has_column(zoo, table, column) is there


def test_a_rebuilt_table_keeps_its_rows_and_takes_expressions_and_defaults(zoo: sqlite3.Connection) -> None:
    rebuild_animals(zoo)
    assert zoo.execute("SELECT * FROM animals ORDER BY id").fetchall() == [
        (1, "Ada", "ape", 7, None, 4),
        (2, "Bob", "ape", 7, 1, 4),
        (3, "?", "bat", None, None, 4),
    ]


def test_a_rebuilt_table_has_its_new_definition_under_its_old_name(zoo: sqlite3.Connection) -> None:
    rebuild_animals(zoo)
    assert names_of(zoo, "table") == {"keepers", "animals", "meals", "log"}
    with pytest.raises(sqlite3.IntegrityError, match="NOT NULL"):
        zoo.execute("INSERT INTO animals (name) VALUES (NULL)")


def test_a_rebuilt_table_keeps_its_indexes(zoo: sqlite3.Connection) -> None:
    before = zoo.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'index' ORDER BY name").fetchall()
    rebuild_animals(zoo)
    after = zoo.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'index' ORDER BY name").fetchall()
    assert after == before
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        zoo.execute("INSERT INTO animals (name, kind) VALUES ('Ada', 'ape')")


def test_a_rebuilt_table_keeps_its_triggers_and_does_not_fire_them(zoo: sqlite3.Connection) -> None:
    rebuild_animals(zoo)
    assert zoo.execute("SELECT text FROM log").fetchall() == []
    zoo.execute("INSERT INTO animals (name) VALUES ('Cat')")
    assert zoo.execute("SELECT text FROM log").fetchall() == [("animal; Cat",)]


def test_rebuilding_a_parent_deletes_no_rows_of_its_children(zoo: sqlite3.Connection) -> None:
    rebuild_animals(zoo)
    assert zoo.execute("SELECT * FROM meals").fetchall() == [(1, "figs"), (2, "nuts")]
    assert zoo.execute("PRAGMA foreign_key_check").fetchall() == []


def test_references_of_tables_views_and_triggers_survive_a_rebuild(zoo: sqlite3.Connection) -> None:
    rebuild_animals(zoo)
    zoo.execute("COMMIT")
    zoo.execute("PRAGMA foreign_keys=ON")
    assert zoo.execute("SELECT name FROM apes ORDER BY name").fetchall() == [("Ada",), ("Bob",)]
    zoo.execute("INSERT INTO apes VALUES ('Eve')")
    zoo.execute("INSERT INTO meals VALUES (2, 'figs')")
    assert zoo.execute("SELECT text FROM log").fetchall() == [("animal; Eve",), ("meal of Bob",)]
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        zoo.execute("INSERT INTO meals VALUES (99, 'figs')")
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        zoo.execute("INSERT INTO animals (name, mother_id) VALUES ('Kit', 99)")
    zoo.execute("DELETE FROM animals WHERE id = 2")
    assert zoo.execute("SELECT animal_id FROM meals").fetchall() == [(1,)]


def test_renaming_checks_references_again_after_a_rebuild(zoo: sqlite3.Connection) -> None:
    rebuild_animals(zoo)
    assert zoo.execute("PRAGMA legacy_alter_table").fetchone() == (0,)


def test_a_table_of_any_name_and_case_can_be_rebuilt(zoo: sqlite3.Connection) -> None:
    zoo.execute("""CREATE TABLE "odd ""name" (a TEXT, b TEXT)""")
    zoo.execute("""CREATE INDEX odd_a ON "odd ""name" (a)""")
    zoo.execute("""INSERT INTO "odd ""name" VALUES ('x', 'y')""")
    rebuild_table(zoo, 'Odd "Name', "CREATE TABLE {table} (B TEXT, A TEXT)")
    assert zoo.execute("""SELECT a, b FROM "odd ""name" """).fetchall() == [("x", "y")]
    assert "odd_a" in names_of(zoo, "index")


def test_a_generated_column_can_become_an_ordinary_one_and_back(zoo: sqlite3.Connection) -> None:
    zoo.execute("CREATE TABLE squares (side REAL, area AS (side * side))")
    zoo.execute("INSERT INTO squares VALUES (3)")
    rebuild_table(zoo, "squares", "CREATE TABLE {table} (side REAL, area REAL)")
    assert zoo.execute("SELECT side, area FROM squares").fetchall() == [(3.0, 9.0)]
    rebuild_table(zoo, "squares", "CREATE TABLE {table} (side REAL, area AS (side * side * 2))")
    assert zoo.execute("SELECT side, area FROM squares").fetchall() == [(3.0, 18.0)]


def test_an_index_on_a_column_that_goes_stops_the_rebuild(zoo: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.OperationalError, match="no such column: kind"):
        rebuild_table(zoo, "animals", "CREATE TABLE {table} (id INTEGER PRIMARY KEY, name TEXT)")


@pytest.mark.parametrize(
    ("table", "create", "complaint"),
    [
        ("ghosts", "CREATE TABLE {table} (x)", "there is no table ghosts"),
        ("apes", "CREATE TABLE {table} (x)", "there is no table apes"),
        ("animals", "CREATE TABLE animals (x)", "write {table}"),
    ],
)
def test_a_rebuild_that_cannot_be_meant_is_refused(
    zoo: sqlite3.Connection, table: str, create: str, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        rebuild_table(zoo, table, create)


def test_a_rebuild_with_foreign_keys_on_is_refused(zoo: sqlite3.Connection) -> None:
    zoo.execute("COMMIT")
    zoo.execute("PRAGMA foreign_keys=ON")
    with pytest.raises(ValueError, match="foreign keys are on"):
        rebuild_animals(zoo)
    assert zoo.execute("SELECT count(*) FROM meals").fetchone() == (2,)
