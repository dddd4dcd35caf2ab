"""What must be the same for a prediction to go on: the model, the store, and how one is run over the other."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from streamseq.data.normalization import digest
from streamseq.training.predict_task import Recipe

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def settings_of(recipe: Recipe, sequences: NDArray[np.int64]) -> dict[str, Any]:
    """Plain values by what they are, in words.

    Args:
        recipe: What is computed.
        sequences: int64 [N], indices into `store.ids`.
    """
    inputs = recipe.inputs
    everything = np.array_equal(sequences, np.arange(len(recipe.store)))
    return {
        "model": model_fingerprint(recipe.model),
        "store version": recipe.store.version,
        "store fingerprint": recipe.store.fingerprint,
        "sequences": "all" if everything else hashlib.sha256(sequences.astype("<i8").tobytes()).hexdigest()[:16],
        "inputs": describe(inputs) if callable(inputs) else [inputs] if isinstance(inputs, str) else list(inputs),
        "outputs": None if recipe.outputs is None else describe(recipe.outputs),
        "lookahead": {name: [field, int(offset)] for name, (field, offset) in recipe.lookahead.items()},
        "normalize": digest(recipe.normalize) if recipe.normalize else None,
        "lanes": int(recipe.lanes),
        "window": int(recipe.window),
    }


def difference(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first setting that is another one, and its two values; None where there is none."""
    for name, value in now.items():
        if saved.get(name) != value:
            return f"{name} {saved.get(name)}, this one has {value}"
    return None


def model_fingerprint(model: nn.Module) -> str:
    """A hash of a model's parameters and buffers, of its class and of what `repr` says of it.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> before = model_fingerprint(linear)
        >>> before == model_fingerprint(linear), before == model_fingerprint(nn.Linear(2, 2))
        (True, False)
    """
    digest = hashlib.sha256(f"{type(model).__qualname__} {_ADDRESS.sub('', repr(model))}".encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def describe(function: Callable[..., Any]) -> str:
    """A function's name and a hash of its code; of an object that can be called what `repr` says of it.

    What a function refers to outside of itself is not seen.
    """
    if isinstance(function, partial):
        given = [*map(repr, function.args), *(f"{name}={value!r}" for name, value in function.keywords.items())]
        return _ADDRESS.sub("", f"partial({', '.join([describe(function.func), *given])})")
    owner = function if hasattr(function, "__qualname__") else type(function)
    called = function if owner is function else getattr(owner, "__call__", None)  # noqa: B004 - its code is wanted
    code = getattr(called, "__code__", None)
    digest = hashlib.sha256()
    if code is not None:
        constants = [each for each in code.co_consts if not hasattr(each, "co_code")]
        digest.update(repr((code.co_code, code.co_names, constants)).encode())
    what = "" if owner is function else f" {_ADDRESS.sub('', repr(function))}"
    return f"{owner.__qualname__}{what} {digest.hexdigest()[:8]}"
