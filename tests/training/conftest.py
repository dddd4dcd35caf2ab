import sys
from pathlib import Path

import pytest

# `corpus` is beside the tests.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def undrawn(monkeypatch):
    """Runs draw no curves, which takes longer than the runs."""
    monkeypatch.setattr("streamseq.training.trainer.draw_curves", lambda rows, path: path.touch())
