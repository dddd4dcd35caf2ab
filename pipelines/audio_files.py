"""Audio files through soundfile: what is in them, their samples in blocks, and whether they are whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .audio_ogg import check_ogg
from .file_bytes import PIECE_BYTES, FileError, check_unchanged, open_file
from .files import InputFile

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus")
# Sizes that programs write which do not know how much will come.
_UNKNOWN_SIZES = (0, 0x7FFFFFFF, 0xFFFFFFFF)


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioInfo:
    """What the header of a file says.

    Args:
        samples: Its length in samples of each channel.
        sample_rate: Samples a second.
        channels: How many.
        format: Such as "WAV".
        subtype: Such as "PCM_16".
    """

    samples: int
    sample_rate: int
    channels: int
    format: str
    subtype: str


def package(name: str) -> ModuleType:
    """Import soundfile or soxr.

    Raises:
        ImportError: It is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(f"audio needs the package {name}: pip install 'streamseq[audio]'") from None


def seeks_exactly(file: InputFile, sure: bool) -> bool:
    """Whether samples from the middle of a file are those of the whole file.

    Those of WAV and FLAC are; those of lossy formats are not. Damage in FLAC is found by decoding all of it.

    Args:
        file: The file.
        sure: Whether all of it is to be looked at before any of it is handed on.
    """
    suffix = PurePosixPath(file.address).suffix.lower()
    return suffix == ".wav" or (suffix == ".flac" and not sure)


def look(file: InputFile) -> AudioInfo:
    """Read the header of a file, and check that its end is there, as far as formats say where that is.

    Raises:
        FileError: It is no audio, cut off, or cannot be read.
    """
    with _opened(file) as sound:
        info = AudioInfo(
            samples=sound.frames,
            sample_rate=sound.samplerate,
            channels=sound.channels,
            format=sound.format,
            subtype=sound.subtype,
        )
    try:
        if info.format in ("WAV", "WAVEX"):
            _check_wav(file)
        elif info.format == "OGG":
            with open_file(file) as opened:
                check_ogg(file, opened)
    except OSError as error:
        raise FileError(file, f"cannot be read: {error.strerror or error}") from error
    return info


def read_samples(file: InputFile, info: AudioInfo, start: int, stop: int) -> Iterator[NDArray[np.float32]]:
    """Yield samples `[start, stop)`, float32 [n, channels] from -1 to 1, in blocks of a few MiB.

    Raises:
        FileError: They cannot be decoded, are not all there or not finite, or the file changed.
    """
    block = max(1, PIECE_BYTES // (4 * info.channels))
    with _opened(file) as sound:
        position = start
        if start:
            sound.seek(start)
        while position < stop:
            try:
                samples = sound.read(min(block, stop - position), dtype="float32", always_2d=True)
            except package("soundfile").SoundFileError as error:
                raise FileError(
                    file, f"the {info.format} data is damaged here or behind ({error})", f"sample {position}"
                ) from None
            finite = np.isfinite(samples).all(axis=1)
            if not finite.all():
                at = position + int(np.argmin(finite))
                raise FileError(file, "it is not a finite number", f"sample {at}")
            position += len(samples)
            if not len(samples):
                raise FileError(
                    file, f"the {info.format} data ends early, of {info.samples} samples", f"sample {position}"
                )
            if position >= stop:
                _same(file)
            yield samples


@contextmanager
def _opened(file: InputFile) -> Iterator[Any]:
    soundfile = package("soundfile")
    _same(file)
    try:
        source = file.address if file.modified is not None else open_file(file)
        sound = soundfile.SoundFile(source)
    except OSError as error:
        raise FileError(file, f"cannot be read: {error.strerror or error}") from error
    except soundfile.SoundFileError as error:
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        raise FileError(file, f"is no audio that can be read: {reason}") from None
    with sound:
        yield sound


def _same(file: InputFile) -> None:
    try:
        check_unchanged(file)
    except OSError as error:
        raise FileError(file, f"cannot be read: {error.strerror or error}") from error


def _check_wav(file: InputFile) -> None:
    """Check that the chunk with the samples is as long as it says: libsndfile takes what is there."""
    with open_file(file) as opened:
        at = 12 if opened.read(4) == b"RIFF" else file.size
        while at + 8 <= file.size:
            opened.seek(at)
            header = opened.read(8)
            size = int.from_bytes(header[4:], "little")
            if header[:4] == b"data":
                if size not in _UNKNOWN_SIZES and at + 8 + size > file.size:
                    missing = at + 8 + size - file.size
                    raise FileError(file, f"the WAV data ends early: {missing} bytes are missing", f"byte {file.size}")
                return
            at += 8 + size + size % 2
