"""Fingerprints of values and functions: a hash that is the same in every process, and another one for other code."""

from __future__ import annotations

import dis
import functools
import hashlib
import importlib.metadata
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), Fraction, range, slice)


def fingerprint_of(value: object) -> str:
    """Hash a value: plain ones, arrays, collections, functions, classes and objects made of those.

    Of a function count its bytecode, constants, names, defaults and closure, and what it refers to outside of itself;
    of functions, classes and modules of installed packages only the name and the package's version.

    Raises:
        TypeError: Something in it cannot be taken apart.

    Example:
        >>> double = lambda x: 2 * x
        >>> fingerprint_of(double) == fingerprint_of(lambda x: 2 * x)
        True
        >>> fingerprint_of(double) == fingerprint_of(lambda x: 3 * x)
        False
    """
    return _Hasher().hash(value).hex()


class _Hasher:
    """Hashes one value."""

    def __init__(self) -> None:
        #: What it is inside of, by identity: some contain themselves.
        self._open: dict[int, int] = {}
        #: Functions and classes it has met, with their numbers: each is gone through once, for many refer to others.
        self._met: dict[int, tuple[int, object]] = {}

    def hash(self, value: object) -> bytes:
        if isinstance(value, _PLAIN) and type(value).__module__ in ("builtins", "fractions"):
            return _digest(type(value).__name__, repr(value))
        if id(value) in self._open:
            return _digest("again", self._open[id(value)])
        if isinstance(value, (types.FunctionType, type)):
            if id(value) in self._met:
                return _digest("met", self._met[id(value)][0])
            self._met[id(value)] = len(self._met), value
        self._open[id(value)] = len(self._open)
        try:
            return _digest(type(value).__name__, *self._parts(value))
        finally:
            del self._open[id(value)]

    def _parts(self, value: Any) -> Iterable[object]:
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return [value.dtype.str, value.shape, np.ascontiguousarray(value).tobytes()]
        if isinstance(value, (np.dtype, np.generic)):
            return [value.str] if isinstance(value, np.dtype) else [value.dtype.str, value.tobytes()]
        if type(value) in (list, tuple):
            return [self.hash(item) for item in value]
        if type(value) in (set, frozenset):
            return sorted(self.hash(item) for item in value)
        if isinstance(value, (dict, types.MappingProxyType)):
            return [self.hash(item) for pair in value.items() for item in pair]
        if isinstance(value, types.CodeType):
            return self._code(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return [self.hash(value.__func__), self.hash(value.__self__)]
        if isinstance(value, functools.partial):
            return [self.hash(value.func), self.hash(value.args), self.hash(value.keywords)]
        if isinstance(value, types.ModuleType):
            return _named(value.__name__, "")
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, (types.BuiltinFunctionType, np.ufunc)):
            return self._builtin(value)
        return self._object(value)

    def _code(self, code: types.CodeType) -> Iterable[object]:
        yield from (code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags)
        yield from (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
        yield from (self.hash(constant) for constant in code.co_consts)

    def _function(self, function: types.FunctionType) -> Iterable[object]:
        # The name of a lambda or of a function in another one stands for several.
        if is_library(function.__module__) and "<" not in function.__qualname__:
            return _named(function.__module__, function.__qualname__)
        parts: list[object] = [sys.version_info[:2], self.hash(function.__code__), self.hash(function.__defaults__)]
        parts.append(self.hash(function.__kwdefaults__))
        for cell in function.__closure__ or ():
            try:
                parts.append(self.hash(cell.cell_contents))
            except ValueError:  # not yet filled
                parts.append("empty")
        for name, value in sorted(_referred(function), key=lambda pair: pair[0]):
            parts += [name, self.hash(value)]
        return parts

    def _class(self, kind: type) -> Iterable[object]:
        parts = list(_named(kind.__module__, kind.__qualname__))
        if is_library(kind.__module__):
            return parts
        parts += [self.hash(base) for base in kind.__bases__ if base is not object]
        for name, member in sorted(vars(kind).items()):
            if isinstance(member, (staticmethod, classmethod)):
                member = member.__func__
            if isinstance(member, property):
                member = member.fget
            if isinstance(member, (types.FunctionType, *_PLAIN)) and not name.startswith("__weakref"):
                parts += [name, self.hash(member)]
        return parts

    def _builtin(self, function: Any) -> Iterable[object]:
        own = getattr(function, "__self__", None)
        name = getattr(function, "__qualname__", function.__name__)
        parts = [getattr(function, "__module__", None) or "", name]
        return parts if own is None or isinstance(own, types.ModuleType) else [*parts, self.hash(own)]

    def _object(self, value: Any) -> Iterable[object]:
        try:
            taken = value.__reduce_ex__(4)
        except Exception as error:
            raise TypeError(
                f"a fingerprint is made of values that can be pickled, {type(value).__qualname__} cannot ({error}): "
                "give the transform a version= of your own"
            ) from error
        if isinstance(taken, str):
            return [self.hash(type(value)), taken]
        # What makes it anew, its arguments, the state, and the items of lists and dicts.
        made_by, args, state, *items = taken[:5] if len(taken) > 2 else (*taken, None)
        parts: list[object] = [self.hash(made_by), self.hash(args), self.hash(state)]
        return parts + [self.hash(item) for several in items for item in several or ()]


def is_library(module: str | None) -> bool:
    """Whether a module belongs to Python, to an installed package or to streamseq: its version stands for its code."""
    if not module or module == "__main__":
        return False
    top = module.partition(".")[0]
    if top == "streamseq" or top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return True
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    return file.startswith((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))


@functools.cache
def _version(top: str) -> str:
    if top == "streamseq" or top in sys.stdlib_module_names:
        # What the job's own fingerprint covers, and what bytecode covers.
        return ""
    for name in importlib.metadata.packages_distributions().get(top, ()):
        return importlib.metadata.version(name)
    return ""


def _named(module: str | None, name: str) -> Iterable[object]:
    library = is_library(module)
    return [module or "", name, _version((module or "").partition(".")[0]) if library else ""]


def _referred(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """The globals that a function's code refers to, and of modules of the user's own what it takes from them."""
    names = set(_global_names(function.__code__))
    attributes = set(_all_names(function.__code__))
    for name in names:
        if name not in function.__globals__:
            continue  # a builtin, or missing
        value = function.__globals__[name]
        yield name, value
        if isinstance(value, types.ModuleType) and not is_library(value.__name__):
            for attribute in sorted(attributes & vars(value).keys()):
                yield f"{name}.{attribute}", getattr(value, attribute)


def _global_names(code: types.CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _all_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _all_names(constant)


def _digest(*parts: object) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.digest()
