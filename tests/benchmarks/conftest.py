"""The benchmarks are a package of the repository, and some import their siblings: both directories are on the path."""

import sys
from pathlib import Path


ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
