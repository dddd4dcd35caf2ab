"""Arrays as sequences: the same timesteps from every format, axis, chunking and cut."""

import doctest
import json
import pickle
from contextlib import contextmanager

import h5py
import netCDF4
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from streamseq_pipelines import array, array_files, runs
from streamseq_pipelines.array import ArraySource, command

import streamseq as ss
from streamseq.etl import Skipped, SourceError
from streamseq.etl.identity import job_key, partition_keys
from streamseq.storage.layout import plan_layout


@pytest.mark.parametrize("module", [array, array_files, runs])
def test_examples_do_what_they_show(module):
    assert doctest.testmod(module).failed == 0


def read_all(source, target=1 << 20):
    """The arrays of every id, and what was skipped, as a job would see them."""
    read, skipped, last = {}, [], None
    fields = source.fields
    for partition in pickle.loads(pickle.dumps(source.partitions(target))):
        for item in source.read(partition):
            if isinstance(item, Skipped):
                skipped.append(item)
                continue
            assert item.id == last or item.id not in read, "pieces of one id follow each other"
            for name, values in item.arrays.items():
                assert values.dtype == fields[name].dtype
                assert values.shape[1:] == fields[name].shape
            last = item.id
            read.setdefault(last, []).append(item.arrays)
    return {
        id: {name: np.concatenate([piece[name] for piece in pieces]) for name in fields} for id, pieces in read.items()
    }, skipped


def write(folder, stem, kind, values, chunks=None, dims=None):
    """Arrays by name in one of the formats; returns the path."""
    path = folder / f"{stem}.{kind.split(' ')[0]}"
    if kind.startswith("npy"):
        [values] = values.values()
        np.save(path, np.asfortranarray(values) if "fortran" in kind else values)
    elif kind.startswith("npz"):
        (np.savez_compressed if "packed" in kind else np.savez)(path, **values)
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            for name, each in values.items():
                file.create_dataset(name, data=each, chunks=chunks)
                for axis, dim in enumerate(dims or ()):
                    file[name].dims[axis].label = dim
    elif kind.startswith("nc"):
        with netCDF4.Dataset(path, "w", format="NETCDF3_CLASSIC" if "classic" in kind else "NETCDF4") as file:
            for name, each in values.items():
                names = dims or [f"{name}{axis}" for axis in range(each.ndim)]
                for dim, size in zip(names, each.shape, strict=True):
                    if dim not in file.dimensions:
                        file.createDimension(dim, size)
                file.createVariable(name, each.dtype, names, chunksizes=None if "classic" in kind else chunks)[:] = each
    else:
        group = zarr.open_group(path, mode="w", zarr_format=2 if "v2" in kind else 3)
        for name, each in values.items():
            extra = {} if dims is None or "v2" in kind else {"dimension_names": dims}
            made = group.create_array(name, shape=each.shape, dtype=each.dtype, chunks=chunks or each.shape, **extra)
            if dims is not None and "v2" in kind:
                made.attrs["_ARRAY_DIMENSIONS"] = list(dims)
            made[...] = each
    return path


KINDS = ["npy", "npy fortran", "npz", "npz packed", "h5", "nc", "nc classic", "zarr", "zarr v2"]


@contextmanager
def finely():
    """Small data is cut finely."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamseq.etl.source._SMALLEST_PARTITION", 1)
        patch.setattr("streamseq.etl.source._MIB", 1)
        patch.setattr("streamseq_pipelines.array_plan._PIECE_BYTES", 60)
        patch.setattr("streamseq_pipelines.array_plan._MOST_BYTES", 200)
        yield


@pytest.fixture
def fine():
    """As `finely`."""
    with finely():
        yield


@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS), target=st.integers(1, 600))
def test_any_axis_and_chunks_of_any_format_give_the_same_timesteps(tmp_path_factory, data, kind, target):
    ndim = data.draw(st.integers(1, 4))
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=ndim, max_size=ndim)))
    chunks = tuple(data.draw(st.integers(1, size)) for size in shape)
    time = data.draw(st.integers(0, ndim - 1))
    others = [axis for axis in range(ndim) if axis != time]
    sequence = data.draw(st.sampled_from([None, *others]))
    dtype = data.draw(st.sampled_from(["<f8", "<i4", ">i2"] if "nc" not in kind else ["<f8", "<i4"]))
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    folder = tmp_path_factory.mktemp("arrays")
    write(folder, "a", kind, {"x": values}, chunks)
    write(folder, "b", kind, {"x": values + 1}, chunks)
    source = ArraySource(
        [folder],
        time_axis=time - data.draw(st.sampled_from([0, ndim])),
        sequence_axis=sequence,
    )
    with finely():
        read, skipped = read_all(source, target)
        partitions = source.partitions(target)
        pieces = [piece for partition in partitions for piece in source.read(partition)]
    assert not skipped
    expected = {}
    for stem, each in (("a", values), ("b", values + 1)):
        if sequence is None:
            expected[stem] = np.moveaxis(each, time, 0)
        else:
            for number, one in enumerate(np.moveaxis(each, (sequence, time), (0, 1))):
                expected[f"{stem}/{number}"] = one
    assert list(read) == list(expected)
    for id, found in read.items():
        assert np.array_equal(found["x"], expected[id])
    assert sum(partition.num_bytes for partition in partitions) == 2 * values.nbytes
    # What is handed on is bounded, whatever the chunks are.
    assert max(piece.arrays["x"].nbytes for piece in pieces) <= max(200, source.fields["x"].step_bytes)


@pytest.mark.parametrize("kind", ["npz", "h5", "nc", "zarr", "zarr v2"])
def test_arrays_of_a_group_are_fields(tmp_path, kind):
    values = {"a": np.arange(12, dtype=np.float32).reshape(6, 2), "b": np.arange(6, dtype=np.int16)}
    write(tmp_path, "g", kind, values)
    read, _ = read_all(ArraySource([tmp_path]))
    assert set(read["g"]) == {"a", "b"}
    assert np.array_equal(read["g"]["a"], values["a"])
    assert np.array_equal(read["g"]["b"], values["b"])
    source = ArraySource([tmp_path], fields={"y": "a"}, time_axis={"y": 1})
    assert source.fields == {"y": ss.Field("float32", (6,))}
    assert np.array_equal(read_all(source)[0]["g"]["y"], values["a"].T)
    assert set(ArraySource([tmp_path], fields=["b"]).fields) == {"b"}
    with pytest.raises(SourceError, match="no array 'c', it has a, b"):
        ArraySource([tmp_path], fields=["c"]).partitions(100)
    with pytest.raises(SourceError, match="as many timesteps, it has a 2, b 6: name the fields"):
        ArraySource([tmp_path], time_axis=-1).partitions(100)


@pytest.mark.parametrize("kind", ["h5", "nc", "zarr", "zarr v2"])
def test_the_dimension_that_is_called_time_is_time(tmp_path, kind):
    values = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    write(tmp_path, "g", kind, {"x": values}, dims=["station", "time", "channel"])
    read, _ = read_all(ArraySource([tmp_path]))
    assert np.array_equal(read["g"]["x"], values.transpose(1, 0, 2))
    read, _ = read_all(ArraySource([tmp_path], sequence_axis="station"))
    assert list(read) == ["g/0", "g/1"]
    assert np.array_equal(read["g/1"]["x"], values[1])
    read, _ = read_all(ArraySource([tmp_path], time_axis="station"))
    assert np.array_equal(read["g"]["x"], values)
    for axes in (
        {"sequence_axis": "lane"},
        {"time_axis": "day"},
        {"time_axis": 3},
        {"time_axis": 0, "sequence_axis": 0},
    ):
        with pytest.raises(SourceError, match=r"g\.\w+' cannot be read"):
            ArraySource([tmp_path], **axes).partitions(100)


def test_netcdf_is_unpacked_and_its_times_are_shared_by_all_sequences(tmp_path):
    with netCDF4.Dataset(tmp_path / "era.nc", "w") as file:
        file.createDimension("time", 3)
        file.createDimension("station", 2)
        file.createVariable("time", "i8", ("time",))[:] = [10, 20, 30]
        file.createVariable("latitude", "f4", ("station",))[:] = [1, 2]
        packed = file.createVariable("t2m", "i2", ("time", "station"), fill_value=-99)
        packed.scale_factor, packed.add_offset = 0.5, 10.0
        packed[:] = np.ma.array([[10.5, 11], [12, 13], [14, 15]], mask=[[0, 0], [1, 0], [0, 0]])
        file.createVariable("code", "i2", ("time", "station"), fill_value=-1)[:] = [[1, 2], [-1, 3], [4, 5]]
        file.createVariable("name", str, ("station",))[:] = np.array(["north", "south"], object)
    source = ArraySource([tmp_path / "era.nc"], sequence_axis="station")
    assert not source.threads
    assert {name: field.dtype.name for name, field in source.fields.items()} == {
        "time": "int64",
        "t2m": "float32",
        "code": "int16",
    }
    read, _ = read_all(source)
    assert list(read) == ["era/0", "era/1"]
    assert read["era/0"]["t2m"].tolist()[::2] == [10.5, 14.0]
    assert np.isnan(read["era/0"]["t2m"][1])
    assert read["era/0"]["code"].tolist() == [1, -1, 4]
    assert read["era/1"]["time"].tolist() == [10, 20, 30]


def test_dates_are_counts_with_their_unit(tmp_path):
    np.savez(
        tmp_path / "t.npz", when=np.array(["2024-01-01", "2024-01-02"], "datetime64[h]"), x=[1.0, 2.0], note=["a", "b"]
    )
    source = ArraySource([tmp_path / "t.npz"])
    [piece] = source.read(source.partitions(100)[0])
    assert piece.arrays["when"].tolist() == [1704067200 // 3600, 1704153600 // 3600]
    assert piece.attrs == {"when_unit": "h"}
    assert set(source.fields) == {"when", "x"}


def test_files_are_one_sequence_on_demand(tmp_path):
    for month in (1, 2, 10):
        np.save(tmp_path / f"{month:02}.npy", np.full((month, 2), month))
    read, _ = read_all(ArraySource([tmp_path], one_sequence=True, id="year"))
    assert read["year"]["x"][:, 0].tolist() == [1, 2, 2] + [10] * 10


def test_folders_are_searched_for_files_and_zarr(tmp_path):
    (tmp_path / "deep").mkdir()
    np.save(tmp_path / "deep/b.npy", np.arange(3))
    write(tmp_path / "deep", "c", "zarr", {"x": np.arange(4)})
    zarr.create_array(tmp_path / "d.zarr", data=np.arange(5))
    (tmp_path / "notes.txt").write_text("no array")
    read, _ = read_all(ArraySource([tmp_path]))
    assert {id: len(found["x"]) for id, found in read.items()} == {"deep/b": 3, "deep/c": 4, "d": 5}
    assert set(read_all(ArraySource([tmp_path / "*.zarr"]))[0]) == {"d"}
    assert set(read_all(ArraySource([tmp_path / "d.zarr", tmp_path / "deep/b.npy"]))[0]) == {"d", "b"}
    with pytest.raises(FileNotFoundError):
        ArraySource([tmp_path / "none.npy"]).partitions(100)
    with pytest.raises(SourceError, match=r"notes\.txt' does not show in its name"):
        ArraySource([tmp_path / "notes.txt"]).partitions(100)
    (tmp_path / "flat.zarr").write_text("{}")
    with pytest.raises(SourceError, match=r"flat\.zarr' is no Zarr array or group"):
        ArraySource([tmp_path / "flat.zarr"]).partitions(100)


@pytest.mark.parametrize("kind", ["npy", "npz", "h5", "nc", "zarr"])
def test_other_contents_make_other_partitions(tmp_path, kind):
    path = write(tmp_path, "a", kind, {"x": np.arange(10)})
    before = ArraySource([path]).partitions(100)
    write(tmp_path, "a", kind, {"x": np.arange(10) + 1})
    assert ArraySource([path]).partitions(100) != before


def harm(path, kind):
    data = path.read_bytes()
    if kind == "cut off":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(b"this is no array" * 100)


@pytest.mark.parametrize("damage", ["cut off", "nonsense"])
@pytest.mark.parametrize("kind", ["npy", "npz", "npz packed", "h5", "nc", "nc classic"])
def test_a_broken_file_among_good_ones(tmp_path, kind, damage):
    values = np.random.default_rng(1).random((5000, 2))
    for stem in "abc":
        write(tmp_path, stem, kind, {"x": values}, chunks=(500, 2))
    path = tmp_path / f"b.{kind.split(' ')[0]}"
    harm(path, damage)
    with pytest.raises(SourceError, match=rf"{path.name}.*cannot be read"):
        read_all(ArraySource([tmp_path]))
    for on_error in ("skip", "quarantine"):
        read, skipped = read_all(ArraySource([tmp_path], on_error=on_error))
        assert [item.what for item in skipped] == [str(path)]
        assert set(read) == {"a", "c"}


@pytest.mark.parametrize("kind", ["h5", "zarr", "npz packed"])
def test_damage_inside_of_an_array_costs_what_is_read_with_it(tmp_path, fine, kind):
    values = np.arange(1000)
    path = write(tmp_path, "a", kind, {"x": values}, chunks=(10,))
    if kind == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=values, chunks=(10,), fletcher32=True)
            offset = file["x"].id.get_chunk_info(50).byte_offset
        data = bytearray(path.read_bytes())
        data[offset] ^= 0xFF
        path.write_bytes(data)
    elif kind == "zarr":
        (path / "x/c/50").write_bytes(b"nonsense")
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    with pytest.raises(
        SourceError, match=r"a\.\w+, timesteps 500 to 509: " if kind != "npz packed" else r"a\.npz, timesteps"
    ):
        read_all(ArraySource([path]))
    found = [read_all(ArraySource([path], on_error="skip"), target) for target in (100, 900, 1 << 20)]
    for read, skipped in found:
        assert np.array_equal(read["a"]["x"], found[0][0]["a"]["x"])
        if kind == "npz packed":
            assert skipped
        else:
            assert [(item.what, item.place, item.num_bytes) for item in skipped] == [
                (str(path), "timesteps 500 to 509", 80)
            ]
            assert read["a"]["x"].tolist() == [*range(500), *range(510, 1000)]


@pytest.mark.parametrize("format", ["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"])
@pytest.mark.parametrize("several", [False, True])
def test_classic_netcdf_that_was_cut_off_by_a_value_is_found(tmp_path, format, several):
    path = tmp_path / "a.nc"
    with netCDF4.Dataset(path, "w", format=format) as file:
        file.createDimension("time", None)
        file.createDimension("channel", 3)
        file.title = "of odd length"
        file.createVariable("fixed", "f8", ("channel",))[:] = [1, 2, 3]
        file.createVariable("x", "i2", ("time", "channel"))[:] = np.arange(15).reshape(5, 3)
        if several:
            file.createVariable("y", "i2", ("time",))[:] = np.arange(5)
        file["x"].units = "m"
    assert read_all(ArraySource([path]))[0]["a"]["x"][4].tolist() == [12, 13, 14]
    data = path.read_bytes()
    path.write_bytes(data[:-4])
    with pytest.raises(SourceError, match="its header speaks of"):
        ArraySource([path]).partitions(100)
    path.write_bytes(data[:50])
    with pytest.raises(SourceError, match="header ends early"):
        ArraySource([path]).partitions(100)


def test_a_file_that_changes_is_noticed(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(10))
    source = ArraySource([tmp_path])
    partitions = source.partitions(100)
    np.save(tmp_path / "a.npy", np.arange(11))
    with pytest.raises(SourceError, match=r"a\.npy: changed while it was ingested"):
        [list(source.read(partition)) for partition in partitions]


@pytest.mark.parametrize("kind", KINDS)
def test_an_array_may_be_several_fields(tmp_path, fine, kind):
    values = np.arange(200.0)
    write(tmp_path, "a", kind, {"x": values}, (50,))
    read, _ = read_all(ArraySource([tmp_path], fields={"y": "x", "z": "x"}))
    assert read["a"]["y"].tolist() == read["a"]["z"].tolist() == values.tolist()


def test_arrays_without_timesteps_are_reported_and_no_error(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((0, 2)))
    np.save(tmp_path / "b.npy", np.zeros((3, 2)))
    read, skipped = read_all(ArraySource([tmp_path]))
    assert set(read) == {"b"}
    assert [(item.what, item.reason) for item in skipped] == [(str(tmp_path / "a.npy"), "it has no timesteps")]


def test_files_that_do_not_fit_the_first_are_left_out(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 2), np.float64))
    np.save(tmp_path / "b.npy", np.zeros((4, 3), np.float64))
    np.save(tmp_path / "c.npy", np.zeros((4, 2), np.float32))
    np.save(tmp_path / "d.npy", np.zeros((4, 2), np.complex64))
    with pytest.raises(SourceError, match=r"b\.npy' cannot be read: field 'x' is float64 \[2\] in the first file"):
        ArraySource([tmp_path]).partitions(100)
    source = ArraySource([tmp_path], on_error="skip")
    report = ss.ingest(source, tmp_path / "s.arrow")
    assert [item.what.rpartition("/")[2] for item in report.skipped] == ["b.npy", "d.npy"]
    assert ss.open(report.store).ids.to_pylist() == ["a", "c"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"paths": []}, ValueError),
        ({"paths": "abc"}, TypeError),
        ({"on_error": "stop"}, ValueError),
        ({"format": "mat"}, ValueError),
        ({"id": "x"}, ValueError),
        ({"id": "", "one_sequence": True}, ValueError),
        ({"one_sequence": True, "sequence_axis": 0}, ValueError),
        ({"fields": "x"}, TypeError),
        ({"fields": []}, ValueError),
        ({"fields": {"a b": "x"}}, ValueError),
    ],
)
def test_wrong_arguments_are_refused(options, error):
    with pytest.raises(error):
        ArraySource(**({"paths": ["a.npy"]} | options))


@pytest.mark.parametrize("package", ["h5py", "netCDF4"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    path = write(tmp_path, "a", "h5" if package == "h5py" else "nc", {"x": np.arange(3)})
    monkeypatch.setitem(__import__("sys").modules, package, None)
    extra = "hdf5" if package == "h5py" else "netcdf"
    with pytest.raises(SourceError, match=rf"needs {package}: pip install streamseq\[{extra}\]"):
        ArraySource([path], on_error="skip").partitions(100)


def test_the_store_is_the_same_for_any_number_of_workers(tmp_path):
    values = np.random.default_rng(0).random((3, 40_000)).astype(np.float32)
    path = write(tmp_path, "era", "zarr", {"t2m": values, "wind": values + 1}, chunks=(1, 1000), dims=["level", "time"])
    fingerprints = set()
    for workers in (1, 3):
        store = tmp_path / f"{workers}.zarr"
        arguments = [path, "--to", store, "--time-axis", "time", "--field", "t2m", "--field", "w=wind"]
        arguments += ["--workers", workers, "--shard-bytes", 100_000, "--chunk-bytes", 10_000, "--json", "--quiet"]
        result = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["timesteps"] == 40_000
        fingerprints.add(ss.open(store).fingerprint)
    assert len(fingerprints) == 1
    assert np.array_equal(ss.open(store).read("era")["w"], (values + 1).T)
    result = CliRunner().invoke(command, [str(path), "--to", str(tmp_path / "n.zarr"), "--field", "a="])
    assert result.exit_code == 2
    assert "--field" in result.output


def test_partitions_say_which_sequence_goes_on_in_them(tmp_path):
    values = np.arange(40_000_000, dtype=np.int8)
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "b.npy", values[:10])
    partitions = ArraySource([tmp_path]).partitions(4 << 20)
    first = [next(ArraySource([tmp_path]).read(partition)).id for partition in partitions]
    assert len(partitions) > 3
    assert [partition.continues for partition in partitions] == [
        id if number and id == "a" else None for number, id in enumerate(first)
    ]
    assert partitions[1].continues == "a"


def test_a_job_knows_what_was_done_already(tmp_path, monkeypatch):
    monkeypatch.setattr("streamseq.etl.source._SMALLEST_PARTITION", 1)
    monkeypatch.setattr("streamseq.etl.source._MIB", 1)
    np.save(tmp_path / "a.npy", np.arange(10.0))
    np.save(tmp_path / "b.npy", np.arange(10.0))
    layout = plan_layout(ArraySource([tmp_path]).fields, "zarr")

    def keys(**options):
        source = ArraySource([tmp_path], **options)
        key = job_key(source, layout)
        assert key is not None
        return key, partition_keys(key, source.partitions(1))

    before = keys()
    assert keys() == before
    assert keys(on_error="skip")[0] != before[0]
    np.save(tmp_path / "b.npy", np.arange(11.0))
    after = keys()
    assert after[0] == before[0]
    assert len(before[1]) == len(after[1]) == 2
    assert after[1][0] == before[1][0]
    assert after[1][1] != before[1][1]
