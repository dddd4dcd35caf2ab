"""Audio: WAV, FLAC and OGG files as sequences of samples, or of frames of samples."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from streamseq.core.fields import Field
from streamseq.etl import Partition, Piece, Skipped, SourceError
from streamseq.etl.command import ingest_command
from streamseq.etl.source import ON_ERROR

from .audio_features import frame_count, resample, to_dtype, to_frames, to_mono
from .audio_files import SUFFIXES, AudioInfo, look, package, read_samples, seeks_exactly
from .bad_input import BadInput
from .file_bytes import FileError, surely
from .file_parts import FilePart, Item, even_cuts, group, nothing_found, steady_target
from .files import InputFile, find_files

DTYPES = ("float32", "int16")
# How large files are decoded to 16 bits, about, as multiples of their size; of others ten times.
_DECODED = {".wav": 1, ".flac": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioSettings:
    """What becomes of samples.

    Args:
        policy: What happens at bad input.
        sample_rate: Samples a second; None: as they are.
        channels: How many a timestep has.
        mono: Channels are averaged to one.
        dtype: "float32" or "int16".
        frame: Samples a frame; None: a timestep is a sample.
        hop: Samples from one frame to the next.
    """

    policy: BadInput
    sample_rate: int | None
    channels: int
    mono: bool
    dtype: str
    frame: int | None
    hop: int

    @property
    def step(self) -> tuple[int, ...]:
        """The step shape."""
        frame = () if self.frame is None else (self.frame,)
        return frame if self.channels == 1 else (*frame, self.channels)


class AudioSource:
    """Audio files as sequences, one a file: field `x`, a sample or a frame of samples a timestep.

    The step shape is `()` or `(channels,)`; of frames `(frame,)` or `(frame, channels)`. Samples are float32 from -1 to
    1, or int16. Attributes are `sample_rate`, and of the file `channels`, `format`, `subtype`, `samples`, and
    `original_sample_rate` where that is another one. Needs `streamseq[audio]`. Spectra are a matter of transforms.

    WAV and FLAC files larger than a partition are cut, where they are not resampled; where bad input is left out, only
    WAV of integers, for other damage is found by decoding. Others are one partition. What is held at once are a few
    MiB. FLAC and OGG have checksums; of damage in WAV only a missing end is found.

    Args:
        paths: Files, folders and globs, as paths or fsspec URLs.
        sample_rate: Resample to so many samples a second, by soxr; None: keep each file's own.
        mono: Average the channels.
        channels: How many channels files have; None: those of the first file that can be read. Others are bad input.
        dtype: "float32" or "int16", which is rounded and clipped.
        frame: Make frames of so many samples, after resampling. The last one is filled with zeros.
        hop: Samples from one frame to the next; None: `frame`.
        patterns: Of folders, take only files whose name, or path in the folder, matches one of these globs; by default
            those with a suffix of WAV, FLAC and OGG.
        on_error: What happens at a file that cannot be read or decoded, is cut off, has other channels or a sample that
            is not finite: "fail", or "skip" and report it. "quarantine" also lists it beside the
            store; the file stays where it is. A file in several partitions that changes fails the job in any case.

    Raises:
        TypeError: `paths` is a string.
        ValueError: There is no path, or an argument has a value that it cannot have.
        ImportError: soundfile or soxr is not installed.

    Example:
        >>> import tempfile, numpy as np, soundfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     soundfile.write(folder + "/a.wav", np.arange(-4, 4, dtype=np.int16), 8000)
        ...     source = AudioSource([folder], dtype="int16", frame=4, hop=2)
        ...     [piece] = source.read(source.partitions(1000)[0])
        >>> piece.arrays["x"].tolist()
        [[-4, -3, -2, -1], [-2, -1, 0, 1], [0, 1, 2, 3]]
        >>> piece.attrs["sample_rate"], piece.attrs["format"], piece.attrs["samples"]
        (8000, 'WAV', 8)
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        sample_rate: int | None = None,
        mono: bool = False,
        channels: int | None = None,
        dtype: str = "float32",
        frame: int | None = None,
        hop: int | None = None,
        patterns: Sequence[str] = (),
        on_error: str = "fail",
    ) -> None:
        if isinstance(paths, (str, os.PathLike)):
            raise TypeError(f"paths is a list, got {paths!r}: put it in a list")
        if not paths:
            raise ValueError("at least one file, folder or glob is named, got none")
        if dtype not in DTYPES:
            raise ValueError(f"dtype is one of {', '.join(DTYPES)}, got {dtype!r}")
        for name, value in (("sample_rate", sample_rate), ("channels", channels), ("frame", frame), ("hop", hop)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is at least 1, got {value}")
        if hop is not None and (frame is None or hop > frame):
            raise ValueError(f"hop is at most a frame, so that no sample is lost, got hop {hop} and frame {frame}")
        package("soundfile")
        if sample_rate is not None:
            package("soxr")
        self._paths = tuple(os.fspath(path) for path in paths)
        self._patterns = tuple(patterns) or tuple(f"*{s}" for suffix in SUFFIXES for s in (suffix, suffix.upper()))
        self._policy = BadInput(on_error=on_error)
        self._sample_rate = sample_rate
        self._mono = mono
        self._channels = channels
        self._dtype = dtype
        self._frame = frame
        self._hop = hop or frame or 1

    @property
    def threads(self) -> bool:
        """True: its work is decoding, resampling and numpy's."""
        return True

    @property
    def on_error(self) -> str:
        """What happens at bad input: "fail", "skip" or "quarantine"."""
        return self._policy.on_error

    @property
    def settings(self) -> AudioSettings:
        """What the result depends on, beside the files."""
        return AudioSettings(
            policy=self._policy,
            sample_rate=self._sample_rate,
            channels=1 if self._mono else self._found_channels(),
            mono=self._mono,
            dtype=self._dtype,
            frame=self._frame,
            hop=self._hop,
        )

    @property
    def fields(self) -> Mapping[str, Field]:
        """One field: `x`."""
        return {"x": Field(self._dtype, self.settings.step)}

    def partitions(self, target_bytes: int) -> list[Partition]:
        """Put small files together up to a partition's size, and cut large ones that can be.

        Raises:
            FileNotFoundError: A path stands for no file.
            SourceError: Something cannot be read and is not to be skipped, two files have one id, or all are empty.
        """
        found = self._find()
        weights = [self._weight(item) for item in found]
        if not any(weights):
            raise nothing_found(found)
        target = steady_target(sum(weights), target_bytes)
        items: list[Item] = []
        for file, weight in zip(found, weights, strict=True):
            if isinstance(file, Skipped):
                items.append(Item(content=file))
            elif not file.size:
                items.append(Item(content=Skipped(what=file.address, reason="empty")))
            elif weight > target and seeks_exactly(file, self._policy.skips):
                try:
                    items += self._cut(file, weight, target)
                except FileError as error:
                    items.append(Item(content=self._policy.file(file, error)))
            else:
                part = FilePart(file=file, start=0, stop=0)
                items.append(Item(content=part, num_bytes=file.size, weight=weight, id=file.id))
        return group(items, target)

    def read(self, partition: Partition) -> Iterator[Piece | Skipped]:
        """Yield the timesteps of a partition, in pieces of a few MiB."""
        settings = self.settings
        for item in partition.content:
            if isinstance(item, Skipped):
                yield item
                continue
            begun = False
            try:
                for piece in _read(item, settings):
                    begun = True
                    yield piece
            except FileError as error:
                if begun or not item.whole:
                    raise  # what was handed on cannot be taken back
                yield self._policy.file(item.file, error)

    def _cut(self, file: InputFile, weight: int, target: int) -> list[Item]:
        """Parts of a file in timesteps; all of it where it is resampled."""
        settings = self.settings
        info = look(file)
        _check_channels(file, info, settings)
        resampled = self._sample_rate not in (None, info.sample_rate)
        if resampled or (self._policy.skips and not info.subtype.startswith("PCM")):
            return [Item(content=FilePart(file=file, start=0, stop=0), num_bytes=file.size, weight=weight, id=file.id)]
        steps = _steps(info, settings)
        step_bytes = self.fields["x"].step_bytes
        items = []
        for start, stop in even_cuts(steps, max(1, target // step_bytes)):
            part = FilePart(file=file, start=start, stop=stop, whole=stop - start == steps)
            num_bytes = file.size * stop // max(1, steps) - file.size * start // max(1, steps)
            items.append(Item(content=part, num_bytes=num_bytes, weight=max(target, num_bytes), id=file.id))
        return items

    def _find(self) -> list[InputFile | Skipped]:
        return find_files(self._paths, self._patterns, skip=self._policy.skips)

    def _found_channels(self) -> int:
        if self._channels is None:
            problem: FileError | None = None
            for item in self._find():
                if isinstance(item, Skipped) or not item.size:
                    continue
                try:
                    self._channels = look(item).channels
                    break
                except FileError as error:
                    problem = error
                    if not self._policy.skips:
                        raise
            if self._channels is None:
                raise problem or SourceError("all files are empty: there is nothing to ingest")
        return self._channels

    def _weight(self, item: InputFile | Skipped) -> int:
        if isinstance(item, Skipped):
            return 0
        decoded = item.size * _DECODED.get(PurePosixPath(item.address).suffix.lower(), 10)
        return decoded * np.dtype(self._dtype).itemsize // 2 * (self._frame or 1) // self._hop


def _read(part: FilePart, settings: AudioSettings) -> Iterator[Piece | Skipped]:
    info = look(part.file)
    if not info.samples:
        yield Skipped(what=part.file.address, reason="it has no samples", num_bytes=part.file.size)
        return
    _check_channels(part.file, info, settings)
    attrs = None if part.start else _attrs(info, settings)
    whole = part.whole and settings.policy.skips
    for values in surely(lambda: _values(part, info, settings)) if whole else _values(part, info, settings):
        yield Piece(id=part.file.id, arrays={"x": values.reshape(len(values), *settings.step)}, attrs=attrs)
        attrs = None


def _values(part: FilePart, info: AudioInfo, settings: AudioSettings) -> Iterator[NDArray[Any]]:
    """The timesteps of a part: [n, channels] or [n, frame, channels]."""
    start, stop = (0, info.samples) if part.whole else (part.start * settings.hop, part.stop)
    if not part.whole and settings.frame is not None:
        stop = min(info.samples, (part.stop - 1) * settings.hop + settings.frame)
    blocks = read_samples(part.file, info, start, stop)
    if settings.mono and info.channels > 1:
        blocks = to_mono(blocks)
    if settings.sample_rate not in (None, info.sample_rate):
        assert settings.sample_rate is not None, "another rate was asked for"
        blocks = resample(blocks, settings.channels, info.sample_rate, settings.sample_rate)
    values = to_dtype(blocks, settings.dtype)
    return values if settings.frame is None else to_frames(values, settings.frame, settings.hop)


def _check_channels(file: InputFile, info: AudioInfo, settings: AudioSettings) -> None:
    if not settings.mono and info.channels != settings.channels:
        raise FileError(file, f"has {info.channels} channels, the store has {settings.channels}: ask for mono")


def _steps(info: AudioInfo, settings: AudioSettings) -> int:
    return info.samples if settings.frame is None else frame_count(info.samples, settings.frame, settings.hop)


def _attrs(info: AudioInfo, settings: AudioSettings) -> dict[str, Any]:
    attrs: dict[str, Any] = {
        "sample_rate": settings.sample_rate or info.sample_rate,
        "channels": info.channels,
        "format": info.format,
        "subtype": info.subtype,
        "samples": info.samples,
    }
    if attrs["sample_rate"] != info.sample_rate:
        attrs["original_sample_rate"] = info.sample_rate
    return attrs


@click.command("audio")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--sample-rate", type=click.IntRange(min=1), metavar="HZ", help="Resample.  [default: as files are]")
@click.option("--mono", is_flag=True, help="Average the channels.")
@click.option("--channels", type=click.IntRange(min=1), help="Channels of the files.  [default: of the first file]")
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Of the samples.")
@click.option("--frame", type=click.IntRange(min=1), help="Samples a frame.  [default: timesteps are samples]")
@click.option("--hop", type=click.IntRange(min=1), help="Samples from one frame to the next.  [default: a frame]")
@click.option(
    "--pattern",
    "patterns",
    metavar="GLOB",
    multiple=True,
    help="Of folders, take only files whose name or path in the folder matches.  [default: WAV, FLAC and OGG]",
)
@click.option(
    "--on-error",
    type=click.Choice(ON_ERROR),
    default="fail",
    show_default=True,
    help="What happens at a file that cannot be decoded: fail, skip and report it, or quarantine, which "
    "also lists it in STORE.quarantine.jsonl.",
)
@ingest_command
def command(
    sources: tuple[str, ...],
    sample_rate: int | None,
    mono: bool,
    channels: int | None,
    dtype: str,
    frame: int | None,
    hop: int | None,
    patterns: tuple[str, ...],
    on_error: str,
) -> AudioSource:
    """Ingest audio files as sequences of samples or frames (field x).

    SOURCE is a file, a folder or a glob, as a path or an fsspec URL, of WAV, FLAC or OGG. Each file is a sequence,
    whose id is its path relative to the folder that was named.
    """
    try:
        return AudioSource(
            sources,
            sample_rate=sample_rate,
            mono=mono,
            channels=channels,
            dtype=dtype,
            frame=frame,
            hop=hop,
            patterns=patterns,
            on_error=on_error,
        )
    except ImportError as error:
        raise click.ClickException(str(error)) from None
