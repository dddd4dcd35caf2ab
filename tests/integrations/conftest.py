"""What all tests of integrations have in common."""

import signal

import pytest


@pytest.fixture(autouse=True)
def ctrl_c_is_as_it_was():
    # Lightning ignores it for good once a run was interrupted.
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)
