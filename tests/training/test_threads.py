"""The probe picks the number of threads by what it measures, and leaves everything as it was."""

import pytest
import torch

from streamseq.training.threads import available_cores, candidate_threads, choose_threads


class Machine:
    """A clock that `work` moves on, by the seconds that an update takes with torch's current number of threads."""

    def __init__(self, seconds):
        self.seconds = {number: list(values) for number, values in seconds.items()}
        self.calls = dict.fromkeys(seconds, 0)
        self.now = 0.0

    def work(self):
        number = torch.get_num_threads()
        values = self.seconds[number]
        self.now += values[self.calls[number] % len(values)]
        self.calls[number] += 1

    def choose(self):
        return choose_threads(self.work, list(self.seconds), clock=lambda: self.now)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: [1.0], 2: [0.6], 4: [0.4]}, 4),
        ({1: [1.0], 2: [0.95], 4: [0.9]}, 1),
        ({1: [1.0], 2: [0.6], 4: [0.58]}, 2),
        ({1: [1.0], 2: [10.0]}, 1),
        ({1: [0.01], 2: [0.006, 0.006, 0.006, 0.1]}, 1),
        ({1: [1.0], 2: [50.0] + [0.6] * 30}, 2),
    ],
    ids=["faster", "hardly faster", "two are enough", "contended", "now and then contended", "warming up"],
)
def test_more_threads_only_where_they_pay(seconds, best):
    assert Machine(seconds).choose() == best


def test_fast_work_is_measured_often_and_slow_work_seldom():
    fast, slow = Machine({1: [0.001], 2: [0.001]}), Machine({1: [60.0], 2: [60.0]})
    fast.choose()
    slow.choose()
    assert fast.calls[1] == fast.calls[2] > slow.calls[1] == slow.calls[2] >= 3


def test_the_number_of_threads_is_afterwards_as_before():
    before = torch.get_num_threads()
    assert choose_threads(lambda: None, [1, 2, 3]) == 1
    with pytest.raises(RuntimeError, match="broken"):
        choose_threads(lambda: (_ for _ in ()).throw(RuntimeError("broken")), [1, 2])
    assert torch.get_num_threads() == before


def test_candidates_are_powers_of_two_and_all_cores():
    assert [candidate_threads(cores) for cores in (1, 2, 3, 6, 8)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4, 6],
        [1, 2, 4, 8],
    ]
    assert available_cores() >= 1


@pytest.mark.parametrize("candidates", [[], [0, 1]])
def test_wrong_candidates_are_refused(candidates):
    with pytest.raises(ValueError, match="numbers of threads"):
        choose_threads(lambda: None, candidates)
