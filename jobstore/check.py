"""`python -m jobstore.check`: the same as `jobstore check`."""

import sys

from jobstore.cli import main

if __name__ == "__main__":
    main(["check", *sys.argv[1:]])
