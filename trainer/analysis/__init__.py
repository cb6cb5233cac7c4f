"""How far a published version can be trusted, measured and drawn."""

import os

# As in trainer.train: OpenMP threads that spin between steps slow everything else on the machine,
# and this process's own other threads. It must be said before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
