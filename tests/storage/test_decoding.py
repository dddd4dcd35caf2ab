"""Decoding ahead: whoever comes first decodes a chunk, once, and everybody hears what came of it."""

import threading

import numpy as np
import pytest

from streamseq.storage.shards.decoding import Decoder, Decoding


class File:
    """Chunks that are decoded when `gate` opens; the first `failures` times it fails."""

    def __init__(self, failures=0):
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.decoded = []
        self.failures = failures

    def decode(self, chunk, spare):
        self.begun.set()
        assert self.gate.wait(10)
        self.decoded.append((chunk, threading.current_thread().name))
        if self.failures:
            self.failures -= 1
            raise OSError("lost")
        return np.array([chunk])


def test_who_waits_for_a_chunk_decodes_the_next_ones_meanwhile():
    slow, quick = File(), File()
    quick.gate.set()
    decoder = Decoder()
    first, second = Decoding(slow, 0, None), Decoding(quick, 1, None)
    decoder.submit(first)
    assert slow.begun.wait(10)
    decoder.submit(second)
    threading.Timer(0.2, slow.gate.set).start()
    decoder.wait(first)
    assert first.result().tolist() == [0]
    assert second.result().tolist() == [1]
    assert quick.decoded == [(1, threading.current_thread().name)]
    assert [thread for _, thread in slow.decoded] == ["streamseq-decoder"]
    assert not first.run()
    decoder.close()


def test_what_was_not_begun_is_given_up_when_the_decoder_is_closed():
    slow = File()
    decoder = Decoder()
    first, second = Decoding(slow, 0, None), Decoding(slow, 1, None)
    decoder.submit(first)
    decoder.submit(second)
    assert slow.begun.wait(10)
    threading.Timer(0.2, slow.gate.set).start()
    decoder.close()
    assert first.result().tolist() == [0]
    decoder.wait(second)
    with pytest.raises(RuntimeError, match="closed"):
        second.result()


def test_an_error_of_the_thread_reaches_who_waits_and_the_thread_goes_on():
    file = File(failures=1)
    file.gate.set()
    decoder = Decoder()
    first, second = Decoding(file, 0, None), Decoding(file, 1, None)
    decoder.submit(first)
    decoder.wait(first)
    with pytest.raises(OSError, match="lost"):
        first.result()
    decoder.submit(second)
    decoder.wait(second)
    assert second.result().tolist() == [1]
    decoder.close()
