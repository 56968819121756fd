"""Everything that talks to MLflow: runs, the packaged generator, and who is champion."""
