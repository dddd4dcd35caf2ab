"""Where a search starts from: the grid around an advice, which is kept in the folder of the search."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamseq.core.errors import ResumeError
from streamseq.search.advice import ADVICE, read_advice
from streamseq.search.advise import USUAL_SECONDS, advise
from streamseq.search.space import Value
from streamseq.storage.interface import Store
from streamseq.storage.places.commit import replace_file
from streamseq.training.settings import TrainingSettings

# Which settings a search takes over where it says none.
_TAKEN = ("lanes", "layout", "split")


def starting_grid(
    store: Store,
    folder: Path,
    *,
    settings: TrainingSettings | None = None,
    advice: str | os.PathLike[str] | None = None,
    seconds: float = USUAL_SECONDS,
    progress: Callable[[str], None] | None = None,
) -> tuple[dict[str, list[Value]], dict[str, Any]]:
    """The values of k1 and k2 to try, and what else the advice proposes for all candidates.

    An advice that is in the folder already is taken as it is, so that a search that goes on has the same grid.

    Args:
        store: What is searched on.
        folder: Of the search; the advice is kept in it.
        settings: Of the candidates, where they are given.
        advice: The folder of an advice that was made before; None: one is made.
        seconds: How long that may take, about.
        progress: Called with what is done next.

    Raises:
        FileNotFoundError: There is no advice in the folder that was named.
        ResumeError: The advice is for other contents, or none that this version wrote.
    """
    kept = folder / ADVICE
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if advice is None:
            advise(store, settings=settings, seconds=seconds, progress=progress).save(folder)
        else:
            content = _found(Path(advice)).read_bytes()
            replace_file(kept, lambda file: file.write(content))
    found = read_advice(folder)
    if found["fingerprint"] != store.fingerprint:
        raise ResumeError(
            f"{kept} is the advice for {found['store']} with other contents than {store.uri} has: take another folder, "
            "or an advice for this store"
        )
    return dict(found["space"]), {name: found["settings"][name] for name in _TAKEN if name in found["settings"]}


def _found(folder: Path) -> Path:
    path = folder / ADVICE if folder.is_dir() else folder
    if not path.exists():
        raise FileNotFoundError(f"there is no advice {path}: name a folder that streamseq advise STORE --out wrote")
    return path
