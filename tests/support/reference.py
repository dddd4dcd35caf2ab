"""TBPTT(k1, k2) by its definition: every lane alone, one timestep at a time, one graph for each update.

Deliberately naive. State before timestep t of a lane: the initial one where a sequence starts. An update at T after T'
differentiates the losses of (T', T] back to b = max(0, T' + k1 - k2), where the state is the constant that the last
update which ran over b computed; with k2 of at least the longest sequence, back to each lane's own reset. Padding is
time in which nothing happens: a lane that stops inside its sequence goes on with the state of its own stop.
"""

import torch


def emitted(windows):
    """For each lane the list of (inputs of one timestep, target, valid, resets, there), padding included."""
    lanes = []
    for lane in range(windows[0].num_lanes):
        steps = []
        for window in windows:
            resets = window.token.resets[lane]
            for t in range(window.num_steps):
                at = (lane, t) if window.batch_first else (t, lane)
                there = t < int(window.lengths[lane])
                steps.append((window["x"][at], window["y"][at], bool(window.mask[at]), bool(resets[t]), there))
        lanes.append(steps)
    return lanes


def longest(windows):
    """The most timesteps from a reset on, padding apart."""
    best = 0
    for steps in emitted(windows):
        length = 0
        for *_, resets, there in steps:
            length = (0 if resets else length) + there
            best = max(best, length)
    return best


def detached(state):
    return None if state is None else torch.utils._pytree.tree_map(torch.Tensor.detach, state)


def holds(steps, time):
    """Whether a lane holds a timestep at a time, or a state for a later one."""
    coming = next((step for step in steps[time:] if step[4]), None)
    return coming is not None and (steps[time][4] or not coming[3])


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
        if losses == "new" and not any(steps[t][4] for steps in lanes for t in range(begin, stop)):
            # Padding in all lanes: no update, and the states are those that the update before computed.
            for lane in range(len(lanes)):
                known[lane].update({t + 1: known[lane].get(begin) for t in range(begin, stop)})
            continue
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
            counted = start if losses == "window" and (not unlimited or holds(steps, begin)) else begin
            for t in range(start, stop):
                x, y, valid, resets, there = steps[t]
                if not there:
                    known[lane][t + 1] = detached(state)
                    continue
                if resets:
                    state = None
                if state is None and hasattr(model, "initial_state"):
                    state = model.initial_state(1)
                out, state = model(x.view(1, 1, -1), state)
                if valid and t >= counted:
                    total, count = total + (out.view(()) - y).square(), count + 1
                known[lane][t + 1] = detached(state)
        if count:
            model.zero_grad()
            (total / count).backward()
            grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
            results.append((float((total / count).detach()), count, grads))
            if step is not None:
                step()
    return results
