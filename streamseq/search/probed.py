"""A model beside a sample: the influence of its states, what truncations lose of its gradient, what an update takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from streamseq.data.dataset import StreamDataset
from streamseq.search.probe_training import ProbeTraining
from streamseq.search.sample import Sample
from streamseq.tbptt.bias import measure_bias
from streamseq.tbptt.engine import TBPTT
from streamseq.tbptt.influence import Influence, measure_influence
from streamseq.tbptt.memory import Memory
from streamseq.training.bias_report import MOST_POINTS, Comparison, choose_spans, comparison
from streamseq.training.threads import thread_count

# The bias is measured on so many sequences, of so many timesteps.
SPANS, USUAL_SPAN, LONGEST_SPAN = 8, 512, 2048
# Too few to show a decay.
_SHORTEST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """A model, and how it reads a sample.

    Args:
        model, loss, inputs, lane_axis: As for `TBPTT`.
        options: Of the `StreamDataset` that it reads.
        training: How it was trained; None: it is the user's.
    """

    model: nn.Module
    loss: Callable[..., Any]
    inputs: Any
    options: dict[str, Any]
    lane_axis: Any
    training: ProbeTraining | None

    def _stream(self, sample: Sample, usual: int, window: int | None = None) -> StreamDataset | None:
        """Pieces of the sample of at most so many timesteps side by side; None where it has none."""
        parts = [list(sample.held_out), list(sample.train)]
        spans, length = choose_spans(parts, None, min(usual, LONGEST_SPAN), SPANS)
        if length < _SHORTEST:
            return None
        return StreamDataset(sample.store, len(spans), window or length, sequences=spans, **self.options)

    def influence(self, sample: Sample, least: int, bias: float) -> Influence | None:
        """Of the states, on a few pieces of the sample; None where they are too short.

        Args:
            sample: Of which pieces are looked at, longer ones where the bound is not clear on shorter ones.
            least: Timesteps to begin with, at least.
            bias: That the bound is to be below.
        """
        usual = max(USUAL_SPAN, least)
        found = self._influence(sample, usual)
        while found is not None and usual < LONGEST_SPAN:
            depth = found.smallest(bias)
            if depth is not None and 2 * depth <= found.lags[-1]:
                break
            usual *= 2
            longer = self._influence(sample, usual)
            if longer is None or longer.num_timesteps <= found.num_timesteps:
                break
            found = longer
        return found

    def _influence(self, sample: Sample, usual: int) -> Influence | None:
        stream = self._stream(sample, usual)
        if stream is None:
            return None
        length = int(stream[0].num_steps)
        stride = -(-length // MOST_POINTS)
        stream = self._stream(sample, length // stride * stride)
        assert stream is not None
        options: dict[str, Any] = {"inputs": self.inputs, "lane_axis": self.lane_axis}
        with thread_count(1):
            lags = length // stride // 2 * stride
            return measure_influence(self.model, self.loss, stream[0], stride=stride, lags=lags, **options)

    def compare(self, sample: Sample, k1: int, k2: int, influence: Influence) -> list[Comparison]:
        """What k2, half and twice as much would lose, as far as the pieces are long enough to tell."""
        stream = self._stream(sample, max(influence.num_timesteps, 4 * k2), k1)
        if stream is None or k1 > influence.num_timesteps // 2:
            return []
        most = influence.num_timesteps // 2 + k1
        chosen = sorted({each for each in (k1, k2 // 2, k2, k2 + k2 // 2, 2 * k2) if k1 <= each <= most})
        options: dict[str, Any] = {"inputs": self.inputs, "lane_axis": self.lane_axis}
        with thread_count(1):
            biases = measure_bias(self.model, self.loss, stream, k1=k1, k2=chosen, **options)
        return [comparison(each, influence) for each in biases]

    def memory(self, sample: Sample, k1: int, k2: int, lanes: int, layout: str, budget: int | None) -> Memory:
        """What an update takes."""
        options = {**self.options, "layout": "even" if len(sample.store) < lanes else layout}
        stream = StreamDataset(sample.store, lanes, k1, **options)
        engine = TBPTT(self.model, self.loss, k1=k1, k2=k2, inputs=self.inputs, lane_axis=self.lane_axis, memory=budget)
        return engine.memory(stream)
