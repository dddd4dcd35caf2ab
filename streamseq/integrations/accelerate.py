"""Accelerate: what the plain loop over `tbptt.updates` takes from an Accelerator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

try:
    from accelerate import Accelerator  # type: ignore[import-untyped]
except ImportError as error:
    raise ImportError("training with Accelerate needs accelerate: pip install streamseq[accelerate]") from error

from streamseq.data.carry import Carry
from streamseq.data.window import Window
from streamseq.integrations.across_ranks import AcrossRanks
from streamseq.tbptt.engine import TBPTT

__all__ = ["make_tbptt", "rank_options", "register"]


def rank_options(accelerator: Accelerator) -> dict[str, int]:
    """The rank and world size of a stream: `StreamDataset(..., **rank_options(accelerator))`.

    The stream has the lanes of its rank by itself. Do not pass a DataLoader over it to `accelerator.prepare`, which
    would deal the windows out again; a `StreamLoader(stream, device=accelerator.device)` it leaves as it is.

    Example:
        >>> from accelerate import Accelerator
        >>> rank_options(Accelerator(cpu=True))
        {'rank': 0, 'world_size': 1}
    """
    return {"rank": accelerator.process_index, "world_size": accelerator.num_processes}


def make_tbptt(
    accelerator: Accelerator, model: Callable[..., Any], loss: Callable[[Any, Window], Tensor], **options: Any
) -> TBPTT:
    """The engine for a model that `accelerator.prepare` returned.

    It calls backward itself, with the accelerator's scaler, and adds up gradients over the ranks itself, once an
    update. The model runs in the accelerator's precision, as it was prepared. `accelerator.clip_grad_norm_` and the
    prepared optimizer's `step` do the rest. Learning rate schedulers are better not prepared: a prepared one makes as
    many steps for an update as there are processes.

    Args:
        accelerator: With one gradient accumulation step; the engine has `accumulate`.
        model: Prepared.
        loss, options: See `streamseq.TBPTT`.

    Raises:
        ValueError: The accelerator is to accumulate gradients.
    """
    if accelerator.gradient_accumulation_steps > 1:
        raise ValueError(
            f"the engine puts updates together itself, got gradient_accumulation_steps="
            f"{accelerator.gradient_accumulation_steps}: pass accumulate={accelerator.gradient_accumulation_steps} "
            "instead, and none to the Accelerator"
        )
    return TBPTT(model, loss, **{"scaler": accelerator.scaler, **options})


def register(accelerator: Accelerator, *parts: Any) -> None:
    """Have parts saved by `accelerator.save_state` and restored by `load_state`, which all ranks call.

    Save at an update with `at_window_end`. Of engines and carries the states of all ranks are saved, and restored with
    any number of ranks.

    Args:
        accelerator: Whose checkpoints they belong to.
        parts: The loader or stream, the `TBPTT` or `Carry`, and whatever else has a state, always in the same order.
    """
    across = (AcrossRanks(part) if isinstance(part, TBPTT | Carry) else part for part in parts)
    accelerator.register_for_checkpointing(*across)
