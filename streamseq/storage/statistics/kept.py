"""Statistics as they are kept: a document of all fields, which a receipt carries and a version has as an attachment."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping

import numpy as np

from streamseq.core.fields import Field
from streamseq.storage.statistics.channels import Statistics
from streamseq.storage.statistics.gather import FieldStatistics
from streamseq.storage.strict_json import parse_json

#: The name of the attachment.
NAME = "statistics"

_FORMAT_VERSION = 1
#: A receipt has 56 bytes a channel at least; with more channels than that there are no statistics of a field.
MOST_CHANNELS = 1 << 14


def gatherers(fields: Mapping[str, Field]) -> dict[str, FieldStatistics]:
    """What gathers statistics, by name, for the fields of which there are any."""
    return {name: FieldStatistics(field) for name, field in fields.items() if math.prod(field.shape) <= MOST_CHANNELS}


def format_statistics(gathered: Mapping[str, FieldStatistics]) -> bytes:
    """The document of what was gathered."""
    documents = {name: each.document() for name, each in gathered.items()}
    return json.dumps({"statistics": _FORMAT_VERSION, "fields": documents}).encode()


def parse_statistics(content: bytes, fields: Mapping[str, Field]) -> dict[str, FieldStatistics]:
    """What `format_statistics` formatted, of a store with these fields.

    Raises:
        ValueError: It is something else.
    """
    document = parse_json(content)
    if not isinstance(document, dict) or not isinstance(document.get("fields"), dict):
        raise ValueError("they are no JSON object with fields")
    if document.get("statistics") != _FORMAT_VERSION:
        raise ValueError(f"they are of version {document.get('statistics')!r}, and this streamseq reads version 1")
    documents = document["fields"]
    known = [name for name, field in fields.items() if math.prod(field.shape) <= MOST_CHANNELS]
    if sorted(documents) != sorted(known):
        raise ValueError(f"they are of {', '.join(documents)}, and the fields are {', '.join(known)}")
    return {name: FieldStatistics.from_document(fields[name], documents[name]) for name in known}


def merge_statistics(contents: Iterable[bytes | None], fields: Mapping[str, Field]) -> bytes | None:
    """One document of what several say together, in this order; None where one of them is not there.

    Raises:
        ValueError: One is no document of statistics of the fields.
    """
    merged = gatherers(fields)
    for content in contents:
        if content is None:
            return None
        for name, each in parse_statistics(content, fields).items():
            merged[name].merge(each)
    return format_statistics(merged)


def read_statistics(content: bytes, fields: Mapping[str, Field], num_timesteps: int) -> dict[str, Statistics]:
    """What a document says of a version, by field.

    Raises:
        ValueError: It is no document of statistics of so many timesteps of the fields.
    """
    found = {name: each.summary() for name, each in parse_statistics(content, fields).items()}
    for name, each in found.items():
        if np.any(each.count + each.missing + each.infinite != num_timesteps):
            raise ValueError(f"they do not count the {num_timesteps} timesteps of {name}")
    return found
