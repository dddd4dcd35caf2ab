"""What the TBPTT engine costs beside loops that are written by hand, and beside other trainers, in turn.

    python benchmarks/tbptt.py [--threads 1 2] [--rounds 15] [--peers]

An LSTM-128 with a linear head, 32 lanes, k = 128, float32, SGD: TBPTT(k, k) against the loop with `detach`, and
TBPTT(k, 2k) against two windows forward and backward by hand for each new one; and a tiny model, whose time is what an
update costs without its arithmetic. Every loop trains on the same windows in memory, and all take turns in one process;
with `--peers` those of Ignite and Lightning too, all in the environment that `peers/environments.py tbptt` makes.
Before the clock runs, each loop is seen to end with the same parameters.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peers import environments

ROOT = Path(__file__).resolve().parent.parent
# Distributions, whose versions are said.
PEERS = {"ignite": "pytorch-ignite", "lightning": "lightning"}
BOUNDS = {("lstm", "streamseq"): 1.02, ("lstm", "streamseq_2k"): 1.05}
SETTINGS = {
    "lstm": {"hidden": 128, "inputs": 16, "lanes": 32, "k": 128, "windows": 16},
    "tiny": {"hidden": 2, "inputs": 2, "lanes": 1, "k": 2, "windows": 512},
}


def measure(name: str, threads: int, rounds: int, windows: int, *, peers: bool) -> list[dict[str, Any]]:
    """A row for each loop, all in this process, in turn."""
    # The environment of the peers has what streamseq imports, not streamseq.
    sys.path.insert(1, str(ROOT))
    import torch
    from tbptt_loops import Setting, Trained, by_hand, by_hand_twice, check_same, engine, engine_twice, windows_of

    torch.set_num_threads(threads)
    setting = Setting(**SETTINGS[name] | {"windows": windows})
    data = windows_of(setting)
    once = {"hand": by_hand, "streamseq": engine}
    if peers:
        import tbptt_peers

        once |= {"ignite": tbptt_peers.ignite, "lightning": tbptt_peers.lightning}
    twice = {"hand_2k": by_hand_twice, "streamseq_2k": engine_twice}
    check_same(once, setting, data)
    check_same(twice, setting, data)
    turns = {each: loop(Trained(setting, data)) for each, loop in (once | twice).items()}
    seconds: dict[str, list[float]] = {each: [] for each in turns}
    for number in range(rounds + 1):
        # Whoever comes first after a pause may find a faster machine.
        order = list(turns) if number % 2 else list(reversed(turns))
        for each in order:
            took = turns[each]()
            # The first round does not count.
            if number:
                seconds[each].append(took)
    found = []
    for each, times in seconds.items():
        k2, reference = ("2k", "hand_2k") if each in twice else ("k", "hand")
        pairs = sorted(took / other for took, other in zip(times, seconds[reference], strict=True))
        median, of_reference = statistics.median(times), statistics.median(seconds[reference])
        found.append(
            {
                "model": name,
                "threads": threads,
                "loop": each,
                "version": importlib.metadata.version(PEERS[each]) if each in PEERS else None,
                "torch": torch.__version__,
                "k2": k2,
                "timesteps_per_second": setting.timesteps / median,
                "time_of_hand_loop": median / of_reference,
                "quartiles": [pairs[len(pairs) // 4], pairs[-1 - len(pairs) // 4]],
                "update_microseconds": 1e6 * median / setting.windows,
                "more_microseconds": 1e6 * (median - of_reference) / setting.windows,
                "bound": BOUNDS.get((name, each)),
            }
        )
    return found


def rows(threads: Sequence[int], rounds: int, scale: float, environment: Path | None) -> Iterator[dict[str, Any]]:
    """The rows of every model and number of threads, each measured in a process of its own.

    Args:
        threads: Numbers of threads.
        rounds: Turns of each loop.
        scale: Of the windows of a turn.
        environment: Where the environments of the peers are; None without peers.
    """
    python = sys.executable
    if environment is not None:
        if problem := environments.problem(environment, "tbptt"):
            raise FileNotFoundError(f"tbptt: {problem}")
        python = str(environments.python(environment, "tbptt"))
    for number in threads:
        for name, sizes in SETTINGS.items():
            windows = max(2, int(sizes["windows"] * scale))
            command = [python, __file__, "--one", name, "--threads", str(number), "--rounds", str(rounds)]
            command += ["--windows", str(windows), *(["--peers"] if environment is not None else [])]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            yield from json.loads(done.stdout.splitlines()[-1])


def section(found: list[dict[str, Any]], command: str) -> str:
    """The rows as a page's section."""
    names = {"hand": "by hand", "hand_2k": "by hand, the past again", "streamseq_2k": "streamseq"}
    big, tiny = ([row for row in found if row["model"] == name] for name in SETTINGS)
    sizes = SETTINGS["lstm"]
    lines = [
        "## Overhead of the TBPTT engine",
        "",
        f"`{command}`. LSTM-{sizes['hidden']} with a linear head, {sizes['inputs']} channels, {sizes['lanes']} lanes, "
        f"k = {sizes['k']}, float32, SGD, windows in memory, torch {found[0]['torch']}. All loops take turns in one "
        "process and end with the same parameters. By hand: the loop with `detach`, and for k2 = 2k a loop that runs "
        "the window before again, two windows forward and backward for each new one. Ignite and Lightning cut whole "
        "sequences in memory in the way that they document, and have nothing for k2 > k. The ratio of medians is that "
        "of the time to the loop by hand with the same k2.",
        "",
        "| threads | loop | k1, k2 | timesteps/s | time of the hand loop's | quartiles of the turns | at most |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in big:
        low, high = row["quartiles"]
        cells = [
            row["threads"],
            " ".join(filter(None, [names.get(row["loop"], row["loop"]), row["version"]])),
            f"k, {row['k2']}",
            f"{row['timesteps_per_second']:,.0f}",
            f"**{row['time_of_hand_loop']:.3f}**",
            f"{low:.3f} to {high:.3f}",
            "" if row["bound"] is None else f"{row['bound']:.2f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    sizes = SETTINGS["tiny"]
    lines += [
        "",
        f"An update beside its arithmetic: LSTM-{sizes['hidden']}, {sizes['lanes']} lane, k = {sizes['k']}.",
        "",
        "| threads | loop | k1, k2 | an update, µs | more than by hand, µs |",
        "|---|---|---|---|---|",
    ]
    for row in tiny:
        cells = [
            row["threads"],
            names.get(row["loop"], row["loop"]),
            f"k, {row['k2']}",
            f"{row['update_microseconds']:,.0f}",
            "" if row["loop"].startswith("hand") else f"**{row['more_microseconds']:,.0f}**",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15, help="turns of each loop")
    parser.add_argument("--scale", type=float, default=1.0, help="of the windows of a turn")
    parser.add_argument("--peers", action="store_true", help="Ignite and Lightning too, in their environment")
    parser.add_argument("--environments", type=Path, default=environments.FOLDER)
    parser.add_argument("--one", choices=list(SETTINGS), help=argparse.SUPPRESS)
    parser.add_argument("--windows", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        found = measure(options.one, options.threads[0], options.rounds, options.windows, peers=options.peers)
        print(json.dumps(found))
        return
    environment = options.environments if options.peers else None
    for row in rows(options.threads, options.rounds, options.scale, environment):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
