"""An advice: what is proposed and why, what was measured for it, and the commands that follow from it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from streamseq.core.errors import ResumeError
from streamseq.core.sizes import format_bytes
from streamseq.search.dependence import Dependence
from streamseq.search.probe_training import ProbeTraining
from streamseq.search.propose import Proposal
from streamseq.search.space import Value
from streamseq.storage.places.commit import replace_file
from streamseq.tbptt.influence import Influence
from streamseq.tbptt.memory import Memory
from streamseq.training.bias_report import Comparison, finite
from streamseq.training.settings import TrainingSettings

ADVICE = "advice.json"
_FORMAT = 1
_WIDTH = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What to try on a store, why, and how sure that is.

    Args:
        store: Where it lies.
        fingerprint: Of its contents.
        proposals: Setting by setting.
        timesteps: Of the sample that was looked at.
        whole: Whether that is the whole store.
        dependences: How far back the data depends, field by field.
        probe: The training of the probe model; None where the model was given, or there is none.
        influence: Of the model's states; None where there is no model or the sample is too short.
        truncations: What some k2 would lose of the model's gradient, measured.
        memory: What an update with the proposal takes; None where there is no model.
        notes: What was not done or not seen, in sentences.
        same: Settings of the trainer that were given, and go into the commands.
        seconds: That it took.
        plots: Where the pictures are.
    """

    store: str
    fingerprint: str
    proposals: tuple[Proposal, ...]
    timesteps: int
    whole: bool
    dependences: tuple[Dependence, ...]
    probe: ProbeTraining | None
    influence: Influence | None
    truncations: tuple[Comparison, ...]
    memory: Memory | None
    notes: tuple[str, ...]
    same: Mapping[str, Value]
    seconds: float
    plots: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Proposal:
        """The proposal for a setting.

        Raises:
            KeyError: There is none.
        """
        for proposal in self.proposals:
            if proposal.name == name:
                return proposal
        raise KeyError(f"the advice has proposals for {', '.join(each.name for each in self.proposals)}, not {name!r}")

    @property
    def k1(self) -> int:
        """Timesteps from one update to the next."""
        return int(self["k1"].value or 0)

    @property
    def k2(self) -> int:
        """Timesteps that back-propagation reaches."""
        return int(self["k2"].value or 0)

    @property
    def settings(self) -> dict[str, Value]:
        """The settings of the trainer that the proposals and what was given come to."""
        usual = TrainingSettings()
        found = {each.name: each.value for each in self.proposals if each.value is not None}
        if "memory" in self.same:
            del found["segment"]
        keep = {"k1", "k2", "lanes", "layout"}
        return {**self.same, **{n: value for n, value in found.items() if n in keep or value != getattr(usual, n)}}

    @property
    def space(self) -> dict[str, list[Value]]:
        """The grid that a search starts from: around k1 and k2, and with windows that end at stored boundaries."""
        k1, k2 = self.k1, self.k2
        more = [each for each in (k2, 2 * k2) if each >= 2 * k1]
        found: dict[str, list[Value]] = {"k1": [k1, 2 * k1], "k2": ["k1", *more]}
        return found | {each.name: [each.value, *each.others] for each in self.proposals if each.others}

    def commands(self) -> dict[str, str]:
        """Command lines by name, "train" and "search"; none for a model of the user's."""
        if self.probe is None:
            return {}
        settings = self.settings
        space = {name: ",".join(map(str, values)) for name, values in self.space.items()}
        options = " ".join(f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in settings.items())
        searched = [f"--{name} {shlex.quote(values)}" for name, values in space.items()]
        for name, value in settings.items():
            if name in ("lanes", "layout"):
                searched.append(f"--{name} {shlex.quote(str(value))}")
            elif name not in space:
                searched.append(f"--set {shlex.quote(f'{name}={value}')}")
        store = shlex.quote(self.store)
        return {
            "train": f"streamseq train {store} {options} --out run",
            "search": f"streamseq search {store} {' '.join(searched)} --out search",
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON: infinite numbers are None."""
        influence = self.influence
        return {
            "format": _FORMAT,
            "store": self.store,
            "fingerprint": self.fingerprint,
            "proposals": [asdict(each) for each in self.proposals],
            "settings": self.settings,
            "space": self.space,
            "commands": self.commands(),
            "timesteps": self.timesteps,
            "whole": self.whole,
            "dependences": [
                {
                    "field": each.field,
                    "kind": each.kind,
                    "memory": each.memory,
                    "reach": each.reach,
                    "timesteps": each.timesteps,
                    "lags": each.lags.tolist(),
                    "values": each.values.tolist(),
                    "chance": each.chance.tolist(),
                }
                for each in self.dependences
            ],
            "probe": None if self.probe is None else {**asdict(self.probe), "learnt": self.probe.learnt},
            "influence": None
            if influence is None
            else {
                "decays": influence.decays,
                "beta": finite(influence.beta),
                "tau": influence.tau,
                "num_timesteps": influence.num_timesteps,
                "lags": influence.lags.tolist(),
                "phi": [finite(value) for value in influence.phi.tolist()],
                "delta": [finite(value) for value in influence.delta.tolist()],
            },
            "truncations": [{name: finite(value) for name, value in asdict(each).items()} for each in self.truncations],
            "memory": None if self.memory is None else self.memory.as_dict(),
            "notes": list(self.notes),
            "seconds": self.seconds,
            "plots": list(self.plots),
        }

    def save(self, folder: Path) -> None:
        """Write `advice.json` into a folder; it appears at once."""
        content = json.dumps(self.as_dict(), allow_nan=False).encode()

        def write(file: IO[bytes]) -> None:
            file.write(content)

        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / ADVICE, write)

    def __str__(self) -> str:
        what = "all" if self.whole else "a sample"
        lines = [f"advice for {self.store}, from {what} of {self.timesteps:,} timesteps, in {self.seconds:.0f} s", ""]
        for each in self.proposals:
            value = "usual" if each.value is None else str(each.value)
            lines.append(f"{each.name:<8} {value:<{_WIDTH}} {each.sure:<6} {each.why}")
        lines += ["", *(f"dependence: {_told(each)}" for each in self.dependences)]
        if self.probe is not None:
            probe = self.probe
            told = f"{probe.loss:.4g} {probe.unit} on held-out data, {probe.without:.4g} from the newest timestep alone"
            lines.append(
                f"probe: {probe.updates:,} updates of TBPTT({probe.k1}, {probe.k2}) in {probe.seconds:.0f} s: {told}"
            )
        if self.truncations:
            lines.append(f"{'k2':>8} {'depth':>8} {'phi':>10} {'delta':>10} {'measured':>10} {'cosine':>8}")
            lines += [
                f"{each.k2:8,} {each.depth:8,} {each.phi:10.3g} {each.delta:10.3g} {each.relative:10.3g} "
                f"{each.cosine:8.4f}"
                for each in self.truncations
            ]
        if self.memory is not None:
            lines.append(f"memory: an update takes about {format_bytes(self.memory.total)}")
        lines += [f"note: {each}" for each in self.notes]
        lines += [f"the picture is in {each}" for each in self.plots]
        ready = [*self.commands().values()] or [f"ss.TBPTT(model, loss, k1={self.k1}, k2={self.k2})"]
        return "\n".join([*lines, "", *ready])


def read_advice(folder: Path) -> dict[str, Any]:
    """The advice that was kept in a folder, as `Advice.as_dict` has it.

    Raises:
        FileNotFoundError: There is none.
        ResumeError: It is none that this version wrote.
    """
    path = folder / ADVICE
    try:
        found = json.loads(path.read_text())
        if found["format"] != _FORMAT or not found["space"] or not isinstance(found["settings"], dict):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise ResumeError(f"{path} is no advice of this version: remove it, and it is made anew") from None
    return dict(found)


def _told(each: Dependence) -> str:
    if not each.reach:
        return f"{each.field}: no {each.kind} of two timesteps up to lag {int(each.lags[-1]):,}"
    return f"{each.field}: {each.kind} is seen up to lag {each.reach:,}, and asks for a memory of {each.memory:,}"
