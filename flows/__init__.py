"""Prefect flows over the stages of dvc.yaml.

Prefect reads its settings while it is imported, so its home and the quiet defaults are set here, before.
"""

import os
from pathlib import Path

from dpgan.environment import quiet_environment

quiet_environment()
os.environ.setdefault("PREFECT_HOME", str(Path.cwd() / ".prefect"))
