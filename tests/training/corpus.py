"""A small store of text that can be learnt, and settings that train on it in a moment."""

import numpy as np

import streamseq as ss
from streamseq.training import TrainingSettings

WORDS = b"the quick brown fox jumps over the lazy dog while nobody looks at the moon".split()


def text(length, seed):
    rng = np.random.default_rng(seed)
    words = b" ".join(WORDS[index] for index in rng.integers(0, len(WORDS), length // 3 + 1))
    return np.frombuffer(words[:length], np.uint8)


def make_store(lengths=(90, 61, 130, 40, 75, 33, 101, 58)):
    return ss.from_arrays({f"doc-{i}": {"x": text(n, i)} for i, n in enumerate(lengths)})


def make_settings(**changes):
    base = {"k1": 8, "k2": 16, "lanes": 3, "hidden": 12, "embedding": 6, "dropout": 0.2, "epochs": 2, "warmup": 3}
    base |= {"held_out": 0.3, "threads": 1, "log_every": 4, "evaluate_every": 5, "checkpoint_every": 3}
    return TrainingSettings(**(base | changes))


class Recorder:
    """A reporter that remembers, and calls `at[update]()` when the run gets there."""

    def __init__(self, at=None):
        self.at = at or {}
        self.shown = []
        self.notes = []

    def show(self, progress):
        self.shown.append(progress)
        self.at.get(progress.update, lambda: None)()

    def note(self, text):
        self.notes.append(text)
