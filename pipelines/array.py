"""Arrays: `.npy`, `.npz`, HDF5, NetCDF and Zarr, of which one axis is time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
import numpy as np

from streamseq.core.fields import Field, check_fields
from streamseq.etl import Partition, Piece, Skipped, SourceError, partition_bytes
from streamseq.etl.command import ingest_command
from streamseq.etl.source import ON_ERROR

from .array_files import check_ids, find_arrays, stem_of
from .array_formats import FORMATS, ArrayFile, ArrayProblem, opened
from .array_plan import ArrayPart, Axis, Layout, lay_out, parts_of
from .array_read import PartReader
from .runs import steady_runs


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayContent:
    """What one partition of arrays holds.

    Args:
        parts: What it reads, in order.
        skipped: Files that were left out.
    """

    parts: tuple[ArrayPart, ...]
    skipped: tuple[Skipped, ...] = ()


class ArraySource:
    """Arrays in files as sequences: each file one sequence, or one for each place along an axis, or all files one.

    What is read at once are whole chunks of about 4 MiB together, or up to 64 MiB where chunks are larger; still larger
    ones are decoded several times. A `.npz` file is not cut, and of its arrays those whose first axis is not
    time, or that are in Fortran order, are held whole. Packed variables of NetCDF are unpacked, and their missing
    values are NaN; dates and durations become int64 counts, whose unit is an attribute of the sequence.

    What cannot be read in the middle of an array is left out in the pieces that are read at once, and what lies behind
    goes on there; what is wrong with a file beforehand leaves out the file.

    Args:
        paths: Files, folders, Zarr folders and globs, as paths or fsspec URLs (NetCDF: local only). Of folders,
            files are taken whose suffix says that they are arrays.
        fields: The array of each field, or a list of arrays; those in groups by their path, with `/`. None: all arrays
            of numbers that have a time axis. The array of a `.npy` file, and of a Zarr array, is called `x`.
        time_axis: Which axis is time: a number, the name of a dimension, or a dict by field. None: the dimension
            that is called "time" where there is one, otherwise the first axis.
        sequence_axis: Which axis has the sequences; number i of file `a.npy` is `a/i`. Arrays without a dimension of
            that name are shared by all of them.
        one_sequence: All files are one sequence, in their order.
        id: The id of the one sequence; None: "array".
        patterns: Of folders, take only files whose name, or path in the folder, matches one of these globs.
        format: One of "npy", "npz", "hdf5", "netcdf" and "zarr"; None: by the suffix.
        on_error: What happens at what cannot be read: "fail", or "skip" and report it. "quarantine" also lists it
            beside the store; arrays stay where they are.

    Raises:
        TypeError: `paths` is a string.
        ValueError: An argument has a value that it cannot have.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(folder + "/plant-3.npy", np.arange(6, dtype=np.float32).reshape(3, 2))
        ...     source = ArraySource([folder], time_axis=1)
        ...     [piece] = source.read(source.partitions(1000)[0])
        >>> piece.id, piece.arrays["x"].tolist()
        ('plant-3', [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]])
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        fields: Mapping[str, str] | Sequence[str] | None = None,
        time_axis: Axis | Mapping[str, Axis] = None,
        sequence_axis: Axis = None,
        one_sequence: bool = False,
        id: str | None = None,
        patterns: Sequence[str] = (),
        format: str | None = None,
        on_error: str = "fail",
    ) -> None:
        if isinstance(paths, (str, os.PathLike)):
            raise TypeError(f"paths is a list, got {paths!r}: put it in a list")
        if not paths:
            raise ValueError("at least one file, folder or glob is named, got none")
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error is one of {', '.join(ON_ERROR)}, got {on_error!r}")
        if format is not None and format not in FORMATS:
            raise ValueError(f"format is one of {', '.join(FORMATS)}, got {format!r}")
        if id is not None and not one_sequence:
            raise ValueError(f"an id names the one sequence of all files, got {id!r} for many: ask for one sequence")
        if id == "":
            raise ValueError("an id has at least one character, got an empty one")
        if one_sequence and sequence_axis is not None:
            raise ValueError(f"files are one sequence or have an axis of them, got both, axis {sequence_axis!r}")
        if isinstance(fields, str):
            raise TypeError(f"fields is a dict field -> array or a list of arrays, got the string {fields!r}")
        if fields is not None:
            wanted = dict(fields) if isinstance(fields, Mapping) else {name: name for name in fields}
            check_fields({name: Field("float32") for name in wanted})
            self._fields: dict[str, str] | None = wanted
        else:
            self._fields = None
        self._paths = tuple(os.fspath(path) for path in paths)
        self._time_axis = dict(time_axis) if isinstance(time_axis, Mapping) else time_axis
        self._sequence_axis = sequence_axis
        self._id = (id or "array") if one_sequence else None
        self._patterns = tuple(patterns)
        self._format = format
        self._on_error = on_error
        self._settled: dict[str, Field] | None = None
        self._threads: bool | None = None

    @property
    def on_error(self) -> str:
        """What happens at bad input: "fail", "skip" or "quarantine"."""
        return self._on_error

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides how arrays become sequences, beside the arrays: plain values."""
        return {
            "fields": self._fields,
            "time_axis": self._time_axis,
            "sequence_axis": self._sequence_axis,
            "id": self._id,
            "format": self._format,
            "on_error": self._on_error,
        }

    @property
    def threads(self) -> bool:
        """Whether all files are NumPy's or Zarr's: the HDF5 and NetCDF libraries work in one thread at a time."""
        if self._threads is None:
            self._threads = not any(file.format in ("hdf5", "netcdf") for file in self._files()[0])
        return self._threads

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields of the first file that can be read.

        Raises:
            FileNotFoundError: A path stands for no file.
            SourceError: No file can be read, or the first one cannot and is not to be skipped.
        """
        if self._settled is None:
            problem = "there are none"
            for file in self._files()[0]:
                try:
                    self._settled = self._look(file).fields
                    break
                except ArrayProblem as error:
                    self._left_out(file, error)
                    problem = f"{file.address!r}: {error}"
            else:
                raise SourceError(f"no file can be read ({problem}): there is nothing to ingest")
        return self._settled

    def partitions(self, target_bytes: int) -> list[Partition]:
        """Look at the shapes of all arrays, cut large ones and put small ones together, up to a partition's size.

        Raises:
            FileNotFoundError: A path stands for no file.
            SourceError: Something is not as it has to be and is not to be skipped.
        """
        files, skipped = self._files()
        self._threads = not any(file.format in ("hdf5", "netcdf") for file in files)
        fields = self.fields
        layouts: list[tuple[ArrayFile, Layout]] = []
        for file in files:
            try:
                layout = self._look(file)
                _check_fields(layout, fields)
                if layout.steps and layout.sequences != 0:
                    layouts.append((file, layout))
                else:
                    skipped.append(Skipped(what=file.address, reason="it has no timesteps", num_bytes=file.input.size))
            except ArrayProblem as problem:
                skipped.append(self._left_out(file, problem))
        if self._id is None:
            check_ids([file for file, _ in layouts])
        total = sum(layout.steps * (layout.sequences or 1) * layout.step_bytes for _, layout in layouts)
        target = partition_bytes(total, target_bytes)
        parts: list[ArrayPart] = []
        for file, layout in layouts:
            parts += [_whole(file, layout)] if file.format == "npz" else parts_of(file, layout, target)
        runs = steady_runs([part.weight for part in parts], lambda number: _name(parts[number]), target)
        partitions, last = [], None
        for start, stop in runs:
            partitions.append(self._partition(parts[start:stop], last))
            last = self._id_of(parts[stop - 1], parts[stop - 1].last - 1)
        if skipped:
            num_bytes = sum(item.num_bytes for item in skipped)
            partitions.append(Partition(num_bytes=num_bytes, content=ArrayContent(parts=(), skipped=tuple(skipped))))
        return partitions

    def _id_of(self, part: ArrayPart, number: int) -> str:
        """The id of one of the sequences that a part holds timesteps of."""
        stem = self._id or stem_of(part.file.input.id)
        return stem if part.layout.sequences is None else f"{stem}/{number}"

    def _partition(self, parts: Sequence[ArrayPart], last: str | None) -> Partition:
        """The partition of some parts; `last` is the id of the sequence that the one before ends with."""
        return Partition(
            # Decoded bytes, which are those of the input unless it is compressed.
            num_bytes=sum(part.weight for part in parts),
            content=ArrayContent(parts=tuple(parts)),
            continues=last if self._id_of(parts[0], parts[0].first) == last else None,
        )

    def read(self, partition: Partition) -> Iterator[Piece | Skipped]:
        """Yield the timesteps of a partition, in pieces of a few MiB."""
        yield from partition.content.skipped
        begun = ""
        with PartReader() as reader:
            for part in partition.content.parts:
                units = {f"{each.field}_unit": each.unit for each in part.layout.arrays if each.unit is not None}
                for item in reader.read(part):
                    if len(item) == 3:
                        place, num_bytes, reason = item
                        lost = Skipped(what=part.file.address, place=place, reason=reason, num_bytes=num_bytes)
                        if self._on_error == "fail":
                            raise SourceError(f"{lost}: repair it, or leave it out with on_error 'skip'")
                        yield lost
                        continue
                    number, arrays = item
                    id = self._id_of(part, number)
                    yield Piece(id=id, arrays=arrays, attrs=units if units and id != begun else None)
                    begun = id

    def _files(self) -> tuple[list[ArrayFile], list[Skipped]]:
        found = find_arrays(self._paths, self._patterns, self._format, skip=self._on_error != "fail")
        files = [item for item in found if isinstance(item, ArrayFile)]
        return files, [item for item in found if isinstance(item, Skipped)]

    def _look(self, file: ArrayFile) -> Layout:
        with opened(file) as arrays:
            return lay_out(arrays, self._fields, self._time_axis, self._sequence_axis)

    def _left_out(self, file: ArrayFile, problem: ArrayProblem) -> Skipped:
        if self._on_error == "fail":
            raise SourceError(f"{file.address!r} cannot be read: {problem}")
        return Skipped(what=file.address, reason=str(problem), num_bytes=file.input.size)


def _check_fields(layout: Layout, fields: Mapping[str, Field]) -> None:
    """Check that a file has the fields of the first one, of dtypes that lose nothing."""
    found = layout.fields
    for name, field in fields.items():
        if name not in found:
            raise ArrayProblem(f"it has no field {name!r}, which the first file has: name the fields")
        same = found[name].shape == field.shape and np.can_cast(found[name].dtype, field.dtype, "safe")
        if not same:
            raise ArrayProblem(
                f"field {name!r} is {field.dtype} {list(field.shape)} in the first file, here "
                f"{found[name].dtype} {list(found[name].shape)}"
            )
    more = sorted(set(found) - set(fields))
    if more:
        raise ArrayProblem(f"it has a field {more[0]!r}, which the first file has not: name the fields")


def _whole(file: ArrayFile, layout: Layout) -> ArrayPart:
    last = 1 if layout.sequences is None else layout.sequences
    return ArrayPart(file=file, layout=layout, first=0, last=last, start=0, stop=layout.steps)


def _name(part: ArrayPart) -> str:
    return f"{part.file.input.id}\0{part.first}\0{part.start}"


class _AxisType(click.ParamType[int | str]):
    """The number of an axis, or the name of a dimension."""

    name = "axis"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """See click."""
        try:
            return int(value)
        except ValueError:
            return str(value)


@click.command("array")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option(
    "--field",
    "fields",
    metavar="NAME[=ARRAY]",
    multiple=True,
    help="A field and its array. Can be repeated.  [default: all arrays of numbers that have a time axis]",
)
@click.option(
    "--time-axis",
    type=_AxisType(),
    help="Which axis is time: a number, or the name of a dimension.  [default: time, or 0]",
)
@click.option(
    "--sequence-axis", type=_AxisType(), help="Which axis has the sequences.  [default: a file is a sequence]"
)
@click.option("--one-sequence", is_flag=True, help="All files, end to end in order, are one sequence.")
@click.option("--id", metavar="NAME", help="The id of the one sequence.  [default: array]")
@click.option("--pattern", "patterns", metavar="GLOB", multiple=True, help="Of folders, take only such files.")
@click.option("--format", type=click.Choice(FORMATS), help="The format of all files.  [default: by suffix]")
@click.option(
    "--on-error",
    type=click.Choice(ON_ERROR),
    default="fail",
    show_default=True,
    help="What happens at what cannot be read: fail, skip and report it, or quarantine, which "
    "also lists it in STORE.quarantine.jsonl.",
)
@ingest_command
def command(sources: tuple[str, ...], fields: tuple[str, ...], **options: Any) -> ArraySource:
    """Ingest arrays of which one axis is time.

    SOURCE is a .npy, .npz, HDF5 or NetCDF file, a Zarr array or group, a folder or a glob, as a path or an fsspec URL.
    """
    named: dict[str, str] = {}
    for text in fields:
        name, equals, array = text.partition("=")
        if not name or (equals and not array) or name in named:
            raise click.BadParameter(f"a field is NAME or NAME=ARRAY, each once, got {text!r}", param_hint="--field")
        named[name] = array or name
    return ArraySource(sources, fields=named or None, **options)
