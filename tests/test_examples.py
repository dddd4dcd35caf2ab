"""Every example runs as it stands, in a process of its own, and prints what its page says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
RUNS = {
    "write_a_store.py": ([], "version 1 is still there"),
    "carry_by_hand.py": ([], "epoch 2: train"),
    "domain_windows.py": ([], "by hand: 8 states ended"),
    "tbptt_in_memory.py": ([], "stopped after 150 and resumed"),
    "exact_bptt.py": (["20000"], "through 20,000 timesteps"),
    "predict.py": ([], "most surprising: timestep 400 of wave-33"),
    "linear_attention.py": ([], "loss 0.0000 after 250 windows"),
    "lightning_tbptt.py": ([], "stopped after 100 and resumed: the same is True"),
    "ignite_tbptt.py": ([], "resumed after 100 windows: the same is True"),
    "accelerate_tbptt.py": ([], "when stopped after 100 and resumed"),
    "copy_task.py": (["10"], "K = 20: test perplexity"),
    "influence_balancing.py": ([], "updates: the wrong way"),
    "sensor_days.py": (
        [],
        "120 windows of 3 stations, each a day from 0:00 to 23:00\nchannels have means within 0.0000 of 0",
    ),
}

# What other packages use of torch.
WARNINGS = {
    "lightning_tbptt.py": "ignore:`isinstance(treespec, LeafSpec)` is deprecated:FutureWarning",
    "ignite_tbptt.py": "ignore:`torch.jit.:DeprecationWarning",
}
IN_FOLDER = (
    "write_a_store.py",
    "exact_bptt.py",
    "sensor_days.py",
    "lightning_tbptt.py",
    "ignite_tbptt.py",
    "accelerate_tbptt.py",
)


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_example(name, tmp_path):
    arguments, wanted = RUNS[name]
    if name in IN_FOLDER:
        arguments = [str(tmp_path), *arguments]
    ignored = ["-W", WARNINGS[name]] if name in WARNINGS else []
    done = subprocess.run(
        [sys.executable, "-W", "error", *ignored, EXAMPLES / name, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert wanted in done.stdout
    assert done.stderr == ""
    assert len((EXAMPLES / name).read_text().splitlines()) < 60
