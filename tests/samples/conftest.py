"""The scripts folder on the path, so that its `sample` package is importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
