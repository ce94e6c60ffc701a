"""Where the repository and the data beside it are."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]

REAL_LOG: Final = ROOT.parent / "shared" / "data" / "apache_access.log.gz"
"""A web server's real log; tests skip, or generate a stand-in, if it is absent."""
