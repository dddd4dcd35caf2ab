"""What one task of a prediction does: run some sequences through the model with carried state, write their outputs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamseq.core.errors import StreamseqError
from streamseq.core.fields import Field
from streamseq.data.dataset import StreamDataset
from streamseq.data.loader import StreamLoader
from streamseq.data.normalization import Scale
from streamseq.data.window import Window
from streamseq.storage.interface import Store
from streamseq.storage.layout import ShardLayout
from streamseq.tbptt.model import Inputs, StatefulModel
from streamseq.tbptt.replay import Replay
from streamseq.training.evaluate import _at_rest
from streamseq.training.predict_job import Job
from streamseq.training.predict_writer import GroupWriter

Outputs = Callable[[Any, Window], Mapping[str, Tensor]]
Arrays = dict[str, NDArray[Any]]
Int64 = NDArray[np.int64]


class PredictionEndedError(StreamseqError):
    """The prediction of this task has failed or was interrupted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is computed, of which store; picklable where the model and the functions are.

    Args:
        model: `model(inputs, state) -> (outputs, state)`.
        store: What it runs over.
        inputs: A field's name, several, or a function of the window.
        outputs: From the model's outputs and the window to fields by name; None: a tensor is "y", a dict its items.
        lookahead: Of the windows, see `StreamDataset`.
        lanes: Number of lanes B, at most.
        window: Timesteps K of a window.
        lane_axis: Of the state, see `TBPTT`.
        normalize: Offset and scale of the fields that are normalised.
    """

    model: nn.Module
    store: Store
    inputs: Inputs
    outputs: Outputs | None
    lookahead: Mapping[str, tuple[str, int]]
    lanes: int
    window: int
    lane_axis: Any
    normalize: Mapping[str, Scale] = field(default_factory=dict)

    @property
    def fields(self) -> list[str]:
        """The fields of the store that are read: all where a function gets the window."""
        if callable(self.inputs) or self.outputs is not None:
            return list(self.store.fields)
        names = [self.inputs] if isinstance(self.inputs, str) else list(self.inputs)
        return [name for name in dict.fromkeys(names) if name not in self.lookahead]


def probe_fields(recipe: Recipe, sequences: Int64) -> dict[str, Field]:
    """The fields of the outputs, as the first window of some sequences gives them.

    Raises:
        TypeError, ValueError: The outputs are not tensors [B, K, *D], or of a dtype that no field has.
    """
    with _at_rest_from(recipe.model, 0), closing(_run(recipe, _stream(recipe, sequences))) as windows:
        _, arrays = next(windows)
    return {name: Field(values.dtype, values.shape[2:]) for name, values in arrays.items()}


def run_task(
    recipe: Recipe, layout: ShardLayout, job: Job, number: int, sequences: Int64, advance: Callable[[int], None]
) -> None:
    """Run some sequences through the model, write what comes out, and leave a receipt in the job's folder.

    Args:
        recipe: What is computed.
        layout: How shards are cut and encoded.
        job: Where receipts lie.
        number: Of the task.
        sequences: Its sequences, as indices into `store.ids`.
        advance: Called with the timesteps of each window that is written.

    Raises:
        PredictionEndedError: The job was stopped meanwhile.
        TypeError, ValueError: The outputs of a window are not as those of the first one were.
    """
    ids = recipe.store.ids.take(sequences).to_pylist()
    places = {sequence: place for place, sequence in enumerate(sequences.tolist())}
    begun: list[str] = []

    def begin(writer: str) -> None:
        job.begin_writer(writer)
        begun.append(writer)

    lengths = recipe.store.lengths[sequences]
    with (
        GroupWriter(job.root, layout, ids, lengths, job.path, begin) as writer,
        # Noise that a model draws in eval mode is the same in whatever process and at each attempt.
        _at_rest_from(recipe.model, number),
        closing(_run(recipe, StreamLoader(_stream(recipe, sequences)))) as windows,
    ):
        for window, arrays in windows:
            if not job.runs():
                raise PredictionEndedError("the prediction was stopped")
            _check(arrays, layout.fields)
            token = window.token
            spans = zip(token.sequence.tolist(), token.start.tolist(), token.stop.tolist(), strict=True)
            for lane, (sequence, start, stop) in enumerate(spans):
                if sequence >= 0:
                    part = {name: values[lane, : stop - start] for name, values in arrays.items()}
                    writer.write(places[sequence], start, part)
            advance(int((token.stop - token.start).sum()))
        job.put_receipt(number, layout, writer.finish())
    job.forget_writers(begun)


@contextmanager
def _at_rest_from(model: nn.Module, seed: int) -> Iterator[None]:
    """The model in eval mode and without gradients; it, and the random generators, are afterwards as they were."""
    # Not inference mode: a table that a model makes and keeps would be of no use in training afterwards.
    with _at_rest(model), torch.no_grad(), Replay(model).without_effect():
        torch.manual_seed(seed)
        yield


def _stream(recipe: Recipe, sequences: Int64) -> StreamDataset:
    return StreamDataset(
        recipe.store,
        min(recipe.lanes, len(sequences)),
        recipe.window,
        sequences=recipe.store.ids.take(sequences),
        fields=recipe.fields,
        lookahead=recipe.lookahead,
        normalize=dict(recipe.normalize),
    )


def _run(recipe: Recipe, windows: Iterable[Window]) -> Generator[tuple[Window, Arrays]]:
    """Windows in stream order, and what comes out of each by field, arrays [B, K, *D]."""
    model = StatefulModel(recipe.model, _no_loss, recipe.inputs, recipe.lane_axis)
    state: Any = None
    device = _device(recipe.model)
    for window in windows:
        here = window if device is None else window.to(device)
        outputs, state = model.forward(here, model.enter(here, 0, state))
        yield window, _arrays(recipe.outputs, outputs, here)


def _no_loss(outputs: Any, window: Window) -> Tensor:
    raise AssertionError("nothing is trained here")


def _device(model: nn.Module) -> torch.device | None:
    """Where the model is; None on the CPU."""
    parameter = next(model.parameters(), None)
    return None if parameter is None or parameter.device.type == "cpu" else parameter.device


def _arrays(function: Outputs | None, outputs: Any, window: Window) -> Arrays:
    if function is not None:
        named: Any = function(outputs, window)
    else:
        named = {"y": outputs} if isinstance(outputs, Tensor) else outputs
    if not isinstance(named, Mapping) or not named or not all(isinstance(value, Tensor) for value in named.values()):
        where = "the model's outputs are" if function is None else "outputs(outputs, window) returns"
        raise TypeError(
            f"{where} a tensor [B, K, *D] or a dict of them by field, got {_kind(named)}: "
            "pass outputs=, a function (outputs, window) -> dict"
        )
    arrays = {}
    for name, tensor in named.items():
        wanted = (window.num_lanes, window.num_steps)
        if tensor.shape[:2] != wanted:
            raise ValueError(
                f"every output has an entry for each lane and timestep, {list(wanted)} and its step shape, got "
                f"{list(tensor.shape)} for {name!r}: pass outputs=, a function (outputs, window) -> dict"
            )
        # numpy has no bfloat16, and float32 has all of its values.
        exact = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        arrays[name] = exact.detach().cpu().numpy()
    return arrays


def _kind(named: object) -> str:
    if not isinstance(named, Mapping):
        return f"a {type(named).__name__}"
    return f"a dict of {', '.join(sorted({type(value).__name__ for value in named.values()})) or 'nothing'}"


def _check(arrays: Arrays, fields: Mapping[str, Field]) -> None:
    got = {name: Field(values.dtype, values.shape[2:]) for name, values in arrays.items()}
    wanted = {name: Field(field.dtype, field.shape) for name, field in fields.items()}
    if got != wanted:
        raise ValueError(
            f"all windows give the same fields: the first one gave {_shown(wanted)}, this one gives {_shown(got)}"
        )


def _shown(fields: Mapping[str, Field]) -> str:
    return ", ".join(f"{name} {field.dtype}{list(field.shape)}" for name, field in fields.items())
