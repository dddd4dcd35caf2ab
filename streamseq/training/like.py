"""Settings as another run had them, or the best one of a search."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streamseq.core.errors import ResumeError
from streamseq.training.checkpoint import read_checkpoint
from streamseq.training.settings import TrainingSettings

# Of a search's folder, and of a run's.
_CHECKPOINTS = ("best.pt", "checkpoint.pt")
# How long a run goes on, and what it is watched by: candidates of a search have little time.
_OWN = frozenset({"updates", "seconds", "epochs", "threads", "device", "held_out_timesteps"})
_OWN |= {"log_every", "evaluate_every", "evaluate_seconds", "checkpoint_every"}


def settings_like(path: str | os.PathLike[str], **changes: Any) -> TrainingSettings:
    """The settings of a run or of a search's best candidate, but for how long it went on and how it was watched.

    Args:
        path: The folder of a search or a run, or a checkpoint.
        changes: Settings that are others.

    Raises:
        ResumeError: There is no checkpoint of the trainer.
        ValueError, TypeError: The settings do not go together.
    """
    place = Path(path)
    if place.is_dir():
        found = [place / name for name in _CHECKPOINTS if (place / name).exists()]
        if not found:
            raise ResumeError(f"{place} has neither {' nor '.join(_CHECKPOINTS)}: name the folder of a search or a run")
        place = found[0]
    saved = read_checkpoint(place)["settings"]
    if "k1" not in saved or "k2" not in saved:
        raise ResumeError(f"{place} is not a checkpoint of the trainer: name the folder of a search or a run")
    kept = {name: value for name, value in asdict(TrainingSettings.from_saved(saved)).items() if name not in _OWN}
    return TrainingSettings(**(kept | changes))
