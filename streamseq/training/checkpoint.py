"""Checkpoints: model, optimizer, carried states, stream position and random generators in one file, all or nothing."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from streamseq.core.errors import ResumeError
from streamseq.storage.places.commit import replace_file

FORMAT = "streamseq checkpoint"
FORMAT_VERSION = 1


@runtime_checkable
class HasState(Protocol):
    """What a checkpoint can save: a model, an optimizer, a `TBPTT`, a stream, a loader, a token."""

    def state_dict(self) -> Mapping[str, Any]:
        """The state, for `torch.load(weights_only=True)`."""


@runtime_checkable
class TakesState(Protocol):
    """What a checkpoint can restore."""

    def load_state_dict(self, state: Any, /) -> object:
        """Go on from what `state_dict` returned."""


def save_checkpoint(
    path: str | os.PathLike[str], *, settings: Mapping[str, Any] | None = None, **parts: HasState | Mapping[str, Any]
) -> None:
    """Write one file that holds all parts and torch's random generators; an older one at `path` is replaced at once.

    Take it at an update with `at_window_end`, when the stream's position and the carried states belong together.

    Args:
        path: Of the file. Its folder exists.
        settings: Plain values by name, of which `load_checkpoint` can ask that they are the same.
        parts: By name, objects with `state_dict()`, or mappings of tensors and plain values, which are kept as they
            are. A stream's position is also what `update.token` has.

    Raises:
        TypeError: A part has no `state_dict()` and is no mapping.

    Example:
        >>> import tempfile
        >>> model = torch.nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(folder + "/c.pt", settings={"lr": 0.1}, model=model, progress={"updates": 7})
        ...     load_checkpoint(folder + "/c.pt", settings={"lr": 0.1}, model=model)["progress"]
        {'updates': 7}
    """
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "settings": dict(settings or {}),
        "parts": {name: _state_of(name, part) for name, part in parts.items()},
        "rng": {"cpu": torch.get_rng_state(), "cuda": _cuda_rng_states()},
    }
    replace_file(Path(path), lambda file: torch.save(content, file))


def _state_of(name: str, part: object) -> Mapping[str, Any]:
    if isinstance(part, Mapping):
        return dict(part)
    if isinstance(part, HasState):
        return part.state_dict()
    raise TypeError(f"a part of a checkpoint has state_dict() or is a mapping, got {name}={type(part).__name__}")


def _cuda_rng_states() -> list[torch.Tensor]:
    return list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else []


def read_checkpoint(path: str | os.PathLike[str], map_location: torch.device | str = "cpu") -> dict[str, Any]:
    """What a checkpoint holds: "settings", "parts" by name and "rng". Restores nothing.

    Raises:
        ResumeError: There is no file, its bytes are not what was written, or it is something else.
    """
    try:
        # torch.load alone does not look at the checksums in the file.
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad is not None:
            raise ResumeError(
                f"{path} is damaged, {bad!r} in it is not what was written: take an older copy, or start anew"
            )
        content = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise ResumeError(f"there is no checkpoint {path}: start without resuming") from None
    except OSError as error:
        raise ResumeError(f"the checkpoint {path} cannot be read: {error.strerror or error}") from None
    except ResumeError:
        raise
    except Exception as error:  # whatever bytes that are no checkpoint make the two readers raise
        raise ResumeError(
            f"{path} is not a whole checkpoint ({type(error).__name__} when reading it): take an older copy, or start "
            "anew"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ResumeError(
            f"{path} is a file of torch but not a checkpoint that save_checkpoint wrote: pass the path of one"
        )
    if content["format_version"] != FORMAT_VERSION:
        raise ResumeError(
            f"{path} has version {content['format_version']} of the checkpoint's format, this streamseq reads version "
            f"{FORMAT_VERSION}: use the streamseq that wrote it"
        )
    return content


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any] | None = None,
    map_location: torch.device | str = "cpu",
    **parts: TakesState,
) -> dict[str, Mapping[str, Any]]:
    """Restore what `save_checkpoint` saved, the random generators included.

    Args:
        path: Of the file.
        settings: Values that must be as they were when it was saved; None: none.
        map_location: Where tensors go that are not copied into others.
        parts: By the names under which they were saved, objects with `load_state_dict()`.

    Returns:
        All that was saved, by name, mappings too.

    Raises:
        ResumeError: The file is missing, damaged or foreign; a setting differs or a part is not in it; or the
            state does not fit the part.
    """
    content = read_checkpoint(path, map_location)
    if settings is not None:
        check_settings(path, content["settings"], settings)
    saved: dict[str, Mapping[str, Any]] = content["parts"]
    for name in parts:
        if name not in saved:
            raise ResumeError(f"{path} holds {', '.join(saved)}, not {name!r}: load what was saved")
    for name, part in parts.items():
        try:
            part.load_state_dict(saved[name])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise ResumeError(f"the {name} in {path} is of another kind than this one: {reason}") from error
    torch.set_rng_state(content["rng"]["cpu"])
    cuda = content["rng"]["cuda"]
    if cuda and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
    return saved


def check_settings(path: str | os.PathLike[str], saved: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Check that a run has the settings that its checkpoint was saved with.

    Raises:
        ResumeError: One differs, or was not saved.
    """
    for name, value in settings.items():
        if name not in saved:
            raise ResumeError(f"the checkpoint {path} was saved without {name}, this run has {name}={value}: omit it")
        if saved[name] != value:
            raise ResumeError(
                f"the checkpoint {path} was saved with {name}={saved[name]}, this run has {name}={value}: take the same"
            )
