"""Runs `run.main`: see there."""

import sys

from tests.scenarios.run import main

if __name__ == "__main__":
    sys.exit(main())
