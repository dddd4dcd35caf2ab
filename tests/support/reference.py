"""TBPTT(k1, k2) by its definition: every lane alone, one timestep at a time, one graph for each update.

Deliberately naive. State before timestep t of a lane: the initial one where a sequence starts. An update at T after T'
differentiates the losses of (T', T] back to b = max(0, T' + k1 - k2), where the state is the constant that the last
update which ran over b computed; with k2 of at least the longest sequence, back to each lane's own reset.
"""

import torch


def emitted(windows):
    """For each lane the list of (inputs of one timestep, target, valid, resets), padding included."""
    lanes = []
    for lane in range(windows[0].num_lanes):
        steps = []
        for window in windows:
            resets = window.token.resets[lane]
            for t in range(window.num_steps):
                at = (lane, t) if window.batch_first else (t, lane)
                steps.append((window["x"][at], window["y"][at], bool(window.mask[at]), bool(resets[t])))
        lanes.append(steps)
    return lanes


def longest(windows):
    """The most timesteps from a reset on, padding apart."""
    best = 0
    for steps in emitted(windows):
        length = 0
        for _, _, valid, resets in steps:
            length = (0 if resets else length) + valid
            best = max(best, length)
    return best


def reference_updates(model, windows, k1, k2, step=None, losses="new"):
    """The loss, count and gradients of each update; `step()` changes the parameters in between.

    `k1=None`: one update for all windows. `losses="window"`: every loss since the start counts.
    """
    lanes = emitted(windows)
    end = len(lanes[0])
    unlimited = k2 is None or k2 >= longest(windows)
    known = [{} for _ in lanes]  # lane -> time -> the state before it, as last computed
    results = []
    for begin in range(0, end, k1 or end):
        stop = end if k1 is None else min(begin + k1, end)
        count = 0
        total = torch.zeros((), dtype=torch.float64)
        for lane, steps in enumerate(lanes):
            if unlimited:
                start = max((t for t in range(begin + 1) if steps[t][3]), default=0)
                state = None
            else:
                start = max(0, begin + k1 - k2)
                state = known[lane].get(start)
            # With k2 of n a lane whose sequence has ended has no loss left.
            counted = start if losses == "window" and (not unlimited or steps[begin][2]) else begin
            for t in range(start, stop):
                x, y, valid, resets = steps[t]
                if resets:
                    state = None
                if state is None and hasattr(model, "initial_state"):
                    state = model.initial_state(1)
                out, state = model(x.view(1, 1, -1), state)
                if valid and t >= counted:
                    total, count = total + (out.view(()) - y).square(), count + 1
                known[lane][t + 1] = torch.utils._pytree.tree_map(torch.Tensor.detach, state)
        if count:
            model.zero_grad()
            (total / count).backward()
            grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
            results.append((float((total / count).detach()), count, grads))
            if step is not None:
                step()
    return results
