"""What tests of reports share."""

import pytest
from support.pages import Reader
from support.report_sources import write_store

import streamseq as ss


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The address of a store with everything that a report tells of one."""
    return write_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def read(tmp_path):
    """Write the report of something, and read it."""

    def write_and_read(path, **options):
        made = ss.report(path, tmp_path / "report.html", **options)
        return Reader(tmp_path / "report.html"), made

    return write_and_read
