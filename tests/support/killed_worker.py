"""A process of its own whose DataLoader loses a worker: python killed_worker.py STORE START_METHOD

It prints, as JSON, the worker's process id, what the loader said, and how many windows a second loader gave. torch
raises from a signal's handler, whenever that comes: in the process of the tests it could come in the middle of pytest.
"""

import json
import os
import signal
import sys
import time

from torch.utils.data import DataLoader

import streamseq as ss


def main(uri: str, method: str) -> None:
    stream = ss.StreamDataset(ss.open(uri), 3, 5, shuffle=True, lookahead={"next": ("x", 1)})
    loader = DataLoader(stream, batch_size=None, num_workers=2, prefetch_factor=1, multiprocessing_context=method)
    windows = iter(loader)
    next(windows)
    worker = windows._workers[1].pid
    said = []
    try:
        try:
            os.kill(worker, signal.SIGKILL)
            list(windows)
        except (RuntimeError, EOFError, OSError) as error:  # a worker that dies while it hands over breaks a connection
            said.append(str(error))
        time.sleep(0.5)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except RuntimeError as error:  # the handler's
        said.append(str(error))
    again = len(list(DataLoader(stream, batch_size=None, num_workers=2)))
    print(json.dumps({"worker": worker, "said": said, "again": again, "windows": len(stream)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
