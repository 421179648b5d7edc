"""Runs the tests of the contract, all of tests/conformance, through pgbouncer in transaction mode.

Run by hand, with pgbouncer installed (Debian's package will do): `python tests/with_pgbouncer.py [what pytest takes]`.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests import postgres  # noqa: E402 - found by the line above

SETTINGS = """
[databases]
* = host={server} user=postgres

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = 500
default_pool_size = 20
"""


@contextlib.contextmanager
def pgbouncer(server: str) -> Iterator[str]:
    """Yield the URL of a pgbouncer in front of a server that listens on a socket in a folder."""
    [folder] = parse_qs(urlsplit(server).query)["host"]
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        settings = Path(name) / "pgbouncer.ini"
        settings.write_text(SETTINGS.format(server=folder, port=port))
        Path(name).chmod(0o755)
        process = subprocess.Popen(["pgbouncer", "--quiet", str(settings)], user=owner(folder))  # noqa: S607
        try:
            wait_for(port)
            url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
            require_pooler(url)
            yield url
        finally:
            process.terminate()
            process.wait()


def owner(folder: str) -> int | None:
    """Return whom the server runs as, if not as us: pgbouncer refuses to be root."""
    user = Path(folder).stat().st_uid
    return None if user == os.getuid() else pwd.getpwuid(user).pw_uid


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise SystemExit("pgbouncer does not start")


def require_pooler(url: str) -> None:
    """Show that what follows is no run on the server itself."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        if row == (connection.info.backend_pid,):
            raise SystemExit("the server is reached without pgbouncer")


def main(arguments: list[str]) -> int:
    tests = [*(arguments or ["tests/conformance", "--quiet"]), "-k", "postgres"]
    with postgres.running_server() as server, pgbouncer(server) as url:
        environment = os.environ | {"JOBSTORE_TEST_POSTGRES": url}
        return subprocess.run(
            [sys.executable, "-m", "pytest", *tests], cwd=ROOT, env=environment, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
