"""Replay: running the model again over the same timesteps, with the same noise and without a second effect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Noise:
    """The random generators at a moment."""

    cpu: Tensor
    cuda: tuple[tuple[torch.device, Tensor], ...]

    def same_as(self, other: Noise) -> bool:
        """Whether nothing was drawn in between."""
        pairs = zip(self.cuda, other.cuda, strict=True)
        return torch.equal(self.cpu, other.cpu) and all(torch.equal(a, b) for (_, a), (_, b) in pairs)


@dataclass(frozen=True, slots=True)
class Moment:
    """The random generators and the model's buffers before a segment."""

    noise: Noise
    buffers: tuple[Tensor, ...]


class Replay:
    """Takes and goes back to moments of a model.

    Args:
        model: Any callable; buffers are those of an `nn.Module`.
    """

    def __init__(self, model: object) -> None:
        self._model = model if isinstance(model, nn.Module) else None
        modules = () if self._model is None else self._model.modules()
        self._places = [(m, name) for m in modules for name, buffer in m._buffers.items() if buffer is not None]

    @property
    def has_buffers(self) -> bool:
        """Whether the model has buffers, which a forward pass may change."""
        return bool(self._places)

    def buffers(self) -> list[Tensor]:
        """The buffers as they are now."""
        found = (module._buffers[name] for module, name in self._places)
        return [buffer for buffer in found if buffer is not None]

    def noise(self) -> Noise:
        """The random generators as they are now."""
        return Noise(torch.get_rng_state(), self._cuda())

    def moment(self, before: Moment | None = None) -> Moment:
        """The moment that is now.

        Args:
            before: An earlier one, whose copies of what did not change since are shared.
        """
        shared = before.buffers if before is not None else ()
        copies = []
        for index, (module, name) in enumerate(self._places):
            buffer = module._buffers[name]
            assert buffer is not None
            same = index < len(shared) and torch.equal(shared[index], buffer)
            copies.append(shared[index] if same else buffer.detach().clone())
        noise = self.noise()
        if before is not None and noise.same_as(before.noise):
            noise = before.noise
        return Moment(noise, tuple(copies))

    def _cuda(self) -> tuple[tuple[torch.device, Tensor], ...]:
        if self._model is None:
            return ()
        devices = {parameter.device for parameter in self._model.parameters() if parameter.is_cuda}
        return tuple((device, torch.cuda.get_rng_state(device)) for device in sorted(devices, key=str))

    def set_noise(self, noise: Noise) -> None:
        """Put the random generators where they were."""
        torch.set_rng_state(noise.cpu)
        for device, state in noise.cuda:
            torch.cuda.set_rng_state(state, device)

    def go_back(self, moment: Moment) -> None:
        """Put the random generators and the buffers where they were."""
        self.set_noise(moment.noise)
        with torch.no_grad():
            for (module, name), value in zip(self._places, moment.buffers, strict=True):
                buffer = module._buffers[name]
                assert buffer is not None
                buffer.copy_(value)

    @contextmanager
    def without_effect(self, moment: Moment | None = None) -> Iterator[None]:
        """Run with copies of the buffers, as they are now or were at a moment; changes to them are lost."""
        if not self._places:
            yield
            return
        real = [module._buffers[name] for module, name in self._places]
        values = real if moment is None else moment.buffers
        for (module, name), value in zip(self._places, values, strict=True):
            assert value is not None
            # Another tensor, not other values in the same one: a graph may hold the buffer.
            module._buffers[name] = value.detach().clone()
        try:
            yield
        finally:
            for (module, name), buffer in zip(self._places, real, strict=True):
                module._buffers[name] = buffer
