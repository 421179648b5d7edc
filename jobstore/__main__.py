"""`python -m jobstore`: the same as `jobstore`."""

from jobstore.cli import main

main()
