"""The modules here import each other as siblings."""

import sys
from pathlib import Path


# behind the folder of the tests, whose conftest.py other scripts import by its name
sys.path.append(str(Path(__file__).parent))
