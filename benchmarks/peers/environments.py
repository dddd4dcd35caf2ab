"""One virtual environment for each peer, with pinned versions.

    python benchmarks/peers/environments.py [--folder FOLDER] [PEER ...]

Makes those that are not there yet, one after the other, and says at the end which could not be made and why. What pip
chose beside the pinned packages is left in `installed.txt` of each environment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).parent.parent / ".peers"

# A CPU build of torch is enough, and much smaller: on PyPI the Linux one brings CUDA along.
_TORCH = "torch==2.13.0"
_NUMPY = "numpy==2.4.6"

REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "dataloader": (_TORCH, _NUMPY),
    "grain": ("grain==0.2.18", "array-record==0.8.6", _NUMPY),
    "hf_datasets": ("datasets==5.2.0", _TORCH, _NUMPY),
    "lance": ("pylance==14.0.2", _TORCH, _NUMPY),
    "litdata": ("litdata==0.2.76", _TORCH, _NUMPY),
    "litdata_temporal": ("litdata==0.2.76", _TORCH, _NUMPY),
    # Wants numpy below 2.2 and imports torchvision, which must fit torch.
    "mosaicml": ("mosaicml-streaming==0.13.0", "torchvision==0.28.0", _TORCH),
    "stream_dataloader": ("pytorch-stream-dataloader==1.0", _TORCH, _NUMPY),
    # Trainers, side by side with the engine in one process; what comes after torch is what streamseq imports.
    "tbptt": (
        "pytorch-ignite==0.5.5",
        "lightning==2.6.6",
        _TORCH,
        _NUMPY,
        "pyarrow==26.0.1",
        "zarr==3.1.6",
        "numcodecs==0.16.6",
        "google-crc32c==1.9.0",
    ),
    "tensorstore": ("tensorstore==0.1.86", _NUMPY),
    "webdataset": ("webdataset==1.0.2", _TORCH, _NUMPY),
    "xbatcher": ("xbatcher==0.4.0", "zarr==3.1.6", _TORCH, _NUMPY),
}


def python(folder: Path, peer: str) -> Path:
    """The interpreter of a peer's environment."""
    return folder / peer / "bin" / "python"


def problem(folder: Path, peer: str) -> str | None:
    """Why a peer cannot be measured; None where its environment is ready."""
    failed = folder / f"{peer}.failed"
    if failed.exists():
        return failed.read_text()
    ready = folder / peer / "requirements.json"
    if not ready.exists() or json.loads(ready.read_text()) != list(REQUIREMENTS[peer]):
        return "no environment: run environments.py"
    return None


def create(folder: Path, peer: str) -> str | None:
    """Make the environment of a peer unless it is there; what went wrong, if something did."""
    failed = folder / f"{peer}.failed"
    failed.unlink(missing_ok=True)
    if problem(folder, peer) is None:
        return None
    place = folder / peer
    venv.create(place, with_pip=True, clear=True)
    pip = [str(python(folder, peer)), "-m", "pip", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "install", "--quiet", *REQUIREMENTS[peer]], capture_output=True, text=True)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1][:300] if lines else f"pip ended with {done.returncode}"
        failed.write_text(reason)
        return reason
    installed = subprocess.run([*pip, "freeze"], capture_output=True, text=True, check=True)
    (place / "installed.txt").write_text(installed.stdout)
    (place / "requirements.json").write_text(json.dumps(REQUIREMENTS[peer]))
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(REQUIREMENTS)}; all by default")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the environments are made")
    options = parser.parse_args()
    unknown = set(options.peers) - set(REQUIREMENTS)
    if unknown:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    options.folder.mkdir(parents=True, exist_ok=True)
    problems = {}
    for peer in options.peers or REQUIREMENTS:
        print(f"{peer}: {' '.join(REQUIREMENTS[peer])}", flush=True)
        problems[peer] = create(options.folder, peer)
    for peer, reason in problems.items():
        print(f"{peer}: {'ready' if reason is None else reason}")
    sys.exit(os.EX_OK if not any(problems.values()) else 1)


if __name__ == "__main__":
    main()
