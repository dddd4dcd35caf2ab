"""What a store on a plain HTTP server holds, which lists nothing: found by the names that files of a store have."""

from __future__ import annotations

from collections.abc import Callable

from streamseq.core.errors import CorruptionError
from streamseq.storage.places.place import GROUP_FILE, version_name
from streamseq.storage.strict_json import parse_json

_MOST_AXES = 32


def numbers_there(exists: Callable[[str], bool]) -> list[int]:
    """The numbers of the versions of a store, which are counted from 1 without a gap.

    Args:
        exists: Whether there is a file.

    Example:
        >>> numbers_there(lambda name: name <= "versions/00000005.json")
        [1, 2, 3, 4, 5]
    """
    last, step = 0, 1
    while exists(version_name(last + step)):
        last, step = last + step, step * 2
    while step > 1:
        step //= 2
        if exists(version_name(last + step)):
            last += step
    return list(range(1, last + 1))


def files_of_field(
    size_of: Callable[[str], int], read: Callable[[str], bytes], shard: str, field: str
) -> dict[str, int]:
    """The files that one field of a shard is read from, and their sizes.

    Args:
        size_of: The size of a file.
        read: The content of a small file.
        shard: The id of the shard.
        field: The field.

    Raises:
        CorruptionError: There are no files of a shard.
    """
    root = f"shards/{shard}"
    try:
        names = [f"{root}/shard.json", f"{root}/{field}.arrow"]
        return {name: size_of(name) for name in names}
    except FileNotFoundError:
        pass
    metadata = f"{root}/{field}/{GROUP_FILE}"
    try:
        axes = len(parse_json(read(metadata))["shape"])
        if not 1 <= axes <= _MOST_AXES:
            raise ValueError
        names = [f"{root}/{GROUP_FILE}", metadata, f"{root}/{field}/c{'/0' * axes}"]
        return {name: size_of(name) for name in names}
    except FileNotFoundError:
        raise CorruptionError(f"{root} lacks a file of field {field!r}: restore the shard") from None
    except (ValueError, KeyError, TypeError):
        raise CorruptionError(f"{metadata} is not the metadata of an array: restore the shard") from None
