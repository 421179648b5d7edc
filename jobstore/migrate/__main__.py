"""`python -m jobstore.migrate`: the same as `jobstore migrate`."""

import sys

from jobstore.cli import main

main(["migrate", *sys.argv[1:]])
