"""The benchmarks import each other as siblings: their directory is on the path."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
