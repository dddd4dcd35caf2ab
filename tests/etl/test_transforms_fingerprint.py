"""Fingerprints: the same in every process, another one as soon as settings or code are others."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

import streamseq as ss
from streamseq.etl.transforms import Clip, Function, Scan, Select, Windowed
from streamseq.etl.transforms_fingerprint import fingerprint_of

CODE = """
import functools, math
import numpy as np
import streamseq as ss
from streamseq.etl.transformed_source import TransformedSource
from streamseq.etl.transforms import *

SCALE = {scale}

def helper(x):
    return {helper}

def around(factor):
    def inner(arrays, shift={default}):
        return {{"x": helper(arrays["x"] * factor + shift) * SCALE + (len("a") in {{1, 2, "three"}})}}
    return inner

class Own(Stepwise):
    def output_fields(self, fields):
        return dict(fields)
    def apply(self, arrays):
        return {{"x": arrays["x"] + {method}}}

class State:
    def __init__(self, start):
        self.start = start

function = around({factor})
transforms = [
    Function(function), Windowed(lambda w: {{"x": np.median(w["x"], axis=1)}}, 1, 1), Own(), Clip("x", 0, {high}),
    Scan(lambda s, a: (s, a), State({state})), functools.partial(math.fsum, ()),
    Function(lambda a: {{**a}}, version="1"),
]
print(ss.etl.transforms_fingerprint.fingerprint_of([getattr(t, "fingerprint", t) for t in transforms]))
"""
SETTINGS = {"scale": "2", "helper": "x + 1", "default": "3", "method": "1", "factor": "np.ones(2)", "high": "9"}
OTHERS = {
    "scale": "2.5",
    "helper": "x + 2",
    "default": "4",
    "method": "2",
    "factor": "np.ones(3)",
    "high": "8",
    "state": "'b'",
}


def fingerprint(tmp_path, seed="0", **changed):
    path = tmp_path / f"user_{len(list(tmp_path.iterdir()))}.py"
    path.write_text(CODE.format(**{**SETTINGS, "state": "'a'", **changed}))
    code = f"import runpy; runpy.run_path({str(path)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONHASHSEED": seed}, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_the_same_in_every_process_and_another_one_for_other_code(tmp_path):
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path, seed="1") == first
    seen = {first}
    for name, value in OTHERS.items():
        seen.add(fingerprint(tmp_path, **{name: value}))
    assert len(seen) == 1 + len(OTHERS)


def test_settings_and_their_types_count():
    values = [
        1,
        True,
        1.0,
        "1",
        b"1",
        None,
        (1,),
        [1],
        {1},
        frozenset({1}),
        {"a": 1},
        {1: "a"},
        np.int64(1),
        np.ones(1),
    ]
    values += [
        np.ones((1, 1)),
        np.ones(1, np.float32),
        np.dtype("int8"),
        int,
        len,
        np,
        np.add,
        ss.Field("int8"),
        0.0,
        -0.0,
    ]
    values += [range(2), slice(1), ss.Field("int8", (1,)), Clip, Clip("x", 1), Clip("y", 1), Select(["x"])]
    assert len({fingerprint_of(value) for value in values}) == len(values)


def test_what_contains_itself_has_one():
    def count(n):
        return count(n - 1) if n else 0

    own = []
    own.append(own)
    assert fingerprint_of(count) == fingerprint_of(count) != fingerprint_of(own)


def test_threads_do_not_count_and_a_version_stands_for_code():
    first, second = (lambda arrays: arrays), (lambda arrays: dict(arrays))
    assert Function(first).fingerprint == Function(first, threads=True).fingerprint
    for make in (Function, Windowed, lambda function, **settings: Scan(function, 0, **settings)):
        assert make(first).fingerprint != make(second).fingerprint
        assert make(first, version="1").fingerprint == make(second, version="1").fingerprint
        assert make(first, version="1").fingerprint != make(first, version="2").fingerprint


def test_what_cannot_be_taken_apart_is_an_error_that_names_the_way_out():
    stream = open(__file__)  # noqa: SIM115
    try:
        with pytest.raises(TypeError, match=r"TextIOWrapper cannot .*: give the transform a version= of your own"):
            Function(lambda arrays: stream).fingerprint  # noqa: B018
        assert Function(lambda arrays: stream, version="1").fingerprint
    finally:
        stream.close()


def test_modules_of_the_user_count_as_far_as_they_are_used(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    seen = set()
    for body in ("x + 1", "x + 2"):
        (tmp_path / "my_signals.py").write_text(
            f"def shift(x):\n    return {body}\n\ndef other(x):\n    return {body}\n"
        )
        code = textwrap.dedent("""
            import my_signals
            from streamseq.etl.transforms_fingerprint import fingerprint_of
            print(fingerprint_of(lambda arrays: my_signals.shift(arrays)), fingerprint_of(lambda arrays: my_signals))
        """)
        done = subprocess.run(
            [sys.executable, "-B", "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}
        )
        assert done.returncode == 0, done.stderr
        seen |= set(done.stdout.split())
    assert len(seen) == 3
