"""Where a search starts from: the grid around an advice, which is kept in the folder of the search."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from streamseq.core.errors import ResumeError
from streamseq.search.advice import ADVICE, read_advice
from streamseq.search.advise import USUAL_UPDATES, advise
from streamseq.search.space import Space
from streamseq.storage.interface import Store
from streamseq.storage.places.commit import replace_file
from streamseq.training.settings import TrainingSettings

# Which settings a search takes over where its own are as they are by default.
_TAKEN = ("lanes", "layout", "split")
UPDATES = USUAL_UPDATES


def starting_point(
    store: Store,
    folder: Path,
    space: Space,
    settings: TrainingSettings,
    *,
    advice: str | os.PathLike[str] | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[Space, TrainingSettings]:
    """The space and the settings of a search that begins with an advice.

    An advice that is in the folder already is taken as it is, so that a search that goes on has the same grid.

    Args:
        store: What is searched on.
        folder: Of the search; the advice is kept in it.
        space: What is given of it: those settings are not taken from the advice.
        settings: Of the candidates.
        advice: The folder of an advice that was made before; None: one is made.
        say: Called with what is done next.

    Raises:
        FileNotFoundError: There is no advice in the folder that was named.
        ResumeError: The advice is for other contents, or none that this version wrote.
    """
    kept = folder / ADVICE
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if advice is None:
            advise(store, settings=settings, updates=UPDATES, progress=say).save(folder)
        else:
            content = _found(Path(advice)).read_bytes()
            replace_file(kept, lambda file: file.write(content))
    found = read_advice(folder)
    if found["fingerprint"] != store.fingerprint:
        raise ResumeError(
            f"{kept} is the advice for {found['store']} with other contents than {store.uri} has: take another folder, "
            "or an advice for this store"
        )
    grid = {name: tuple(values) for name, values in found["space"].items()}
    usual = TrainingSettings()
    proposed = {
        name: found["settings"][name]
        for name in _TAKEN
        if name in found["settings"] and name not in space.choices and getattr(settings, name) == getattr(usual, name)
    }
    return Space(choices={**grid, **space.choices}), replace(settings, **proposed)


def _found(folder: Path) -> Path:
    path = folder / ADVICE if folder.is_dir() else folder
    if not path.exists():
        raise FileNotFoundError(f"there is no advice {path}: name a folder that streamseq advise STORE --out wrote")
    return path
