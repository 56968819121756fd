"""What this code costs beside references: `python -m benchmarks`."""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # one core, whatever there is, in numpy too: ratios are to carry over
sys.path.append(str(Path(__file__).parents[1] / "tests"))  # it holds the references, and is no package
