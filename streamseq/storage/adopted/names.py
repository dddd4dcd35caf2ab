"""What is adopted and what it is called: files from addresses, the ids of sequences, their attributes, the fields."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamseq.core.errors import StoreError
from streamseq.core.fields import Field, check_fields
from streamseq.storage.places.location import local_path
from streamseq.storage.shards.shard_writer import attrs_json, check_id

Address = str | os.PathLike[str]


def is_address(value: object) -> bool:
    """Whether it is text or a path."""
    return isinstance(value, str | os.PathLike)


def expand(address: Address, suffixes: tuple[str, ...]) -> list[str]:
    """The files that an address names: one, those that a pattern matches, or those of a folder, sorted by name.

    Args:
        address: A path, a `file://` URL, a pattern with `*`, `?` or `[`, or a folder.
        suffixes: What the names of files in a folder end in, in lower case.

    Raises:
        StoreError: There is none.
        ValueError: It is a URL of another scheme.
    """
    path = local_path(address)
    if path.is_dir():
        found = [str(each) for each in path.rglob("*") if each.suffix.lower() in suffixes and each.is_file()]
        what = f"no file in it ends in {' or '.join(suffixes)}"
    elif not path.exists() and glob.has_magic(str(path)):
        found = [each for each in glob.glob(str(path), recursive=True) if os.path.isfile(each)]
        what = "no file matches it"
    else:
        return [str(path)]
    if not found:
        raise StoreError(f"{path} has nothing to adopt, {what}: check the address")
    return sorted(found)


def expand_all(addresses: Address | Iterable[Address], suffixes: tuple[str, ...]) -> list[str]:
    """The files of one or several addresses, in order; see `expand`.

    Raises:
        TypeError: One is neither text nor a path.
        ValueError: There is none.
    """
    several: Any = [addresses] if is_address(addresses) else addresses
    if not isinstance(several, Iterable):
        raise TypeError(f"files are named by paths, got {type(addresses).__name__}")
    found = []
    for address in several:
        if not is_address(address):
            raise TypeError(f"files are named by paths, got {type(address).__name__} among them")
        found += expand(address, suffixes)
    if not found:
        raise ValueError("at least one file is adopted, got an empty list")
    return found


def ids_of_paths(paths: Sequence[str]) -> list[str]:
    """Ids of files that are a sequence each: their names without suffix, with folders where names repeat.

    Raises:
        ValueError: A file is there twice.

    Example:
        >>> ids_of_paths(["/data/a.npy", "/data/b.npy"]), ids_of_paths(["/data/1/x.npy", "/data/2/x.npy"])
        (['a', 'b'], ['1/x', '2/x'])
    """
    names = [Path(path).stem for path in paths]
    if len(set(names)) < len(names):
        root = os.path.commonpath([os.path.dirname(path) for path in paths])
        names = [Path(path).relative_to(root).with_suffix("").as_posix() for path in paths]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"each file is a sequence with an id of its own, and {twice[0]!r} is there twice: pass a dict")
    return names


def common_uri(paths: Iterable[str]) -> str:
    """The path of one file, or the folder that holds all of several."""
    distinct = sorted(set(paths))
    return distinct[0] if len(distinct) == 1 else os.path.commonpath(distinct)


def check_ids(ids: Iterable[object]) -> list[str]:
    """Ids that the user gave.

    Raises:
        TypeError, ValueError: One is not a string, or empty.
    """
    checked: list[str] = []
    for id in ids:
        check_id(id)
        checked.append(str(id))
    return checked


def merged_attrs(
    ids: Sequence[str], found: Mapping[int, Mapping[str, Any]], given: Mapping[str, Mapping[str, Any]] | None
) -> dict[int, str]:
    """Attributes by the number of the sequence, as JSON text: those that were found, and over them those given.

    Raises:
        TypeError, ValueError: Those given are not what JSON holds, or of no sequence.
    """
    number_of = {id: number for number, id in enumerate(ids)} if given else {}
    strangers = [id for id in given or {} if id not in number_of]
    if strangers:
        raise ValueError(f"attributes belong to a sequence, and there is no {strangers[0]!r}: add it or omit them")
    merged: dict[int, Mapping[str, Any]] = {number: attrs for number, attrs in found.items() if attrs}
    for id, attrs in (given or {}).items():
        number = number_of[id]
        attrs_json(id, attrs)
        merged[number] = {**merged.get(number, {}), **attrs}
    return {number: attrs_json(ids[number], attrs) for number, attrs in merged.items()}


def choose(
    what: str, chosen: Sequence[str] | Mapping[str, str] | None, there: Sequence[str], where: str
) -> dict[str, str]:
    """The names of fields, and what each is called in the file.

    Args:
        what: What the file has: "column" or "array".
        chosen: Names, or the name of each field with that in the file; None: everything that is there.
        there: What there is to choose from.
        where: What to call the file in an error.

    Raises:
        TypeError: The choice is neither.
        StoreError: There is no such thing in the file, or it cannot be the name of a field.
    """
    if isinstance(chosen, str):
        raise TypeError(f"a choice of {what}s is a list of names, or a dict of fields and {what}s, got {chosen!r}")
    if chosen is None:
        pairs = {name: name for name in there}
    else:
        pairs = dict(chosen) if isinstance(chosen, Mapping) else {name: name for name in chosen}
    if not pairs:
        raise StoreError(f"a store has at least one field, and {where} has no {what} that is one: choose some")
    for name, source in pairs.items():
        if source not in there:
            raise StoreError(f"{where} has no {what} {source!r}, it has {', '.join(there) or 'none'}: choose of those")
        try:
            check_fields({name: Field("bool")})
        except ValueError as error:
            raise StoreError(
                f"{where}, {what} {source!r}: {error}, with a dict that says {{'x': {source!r}}}"
            ) from None
    return pairs
