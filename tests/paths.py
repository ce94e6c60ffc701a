"""Paths of the repository and of the sample data next to it."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]

REAL_LOG: Final = ROOT.parent / "shared" / "data" / "apache_access.log.gz"
"""The real log of a web server; tests skip, or generate a substitute, if it is absent."""
