"""The benchmarks import each other, and the examples, as siblings: both directories are on the path."""

import sys
from pathlib import Path


ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples")]
