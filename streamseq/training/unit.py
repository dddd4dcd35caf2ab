"""Units: in what a loss is shown to people."""

from __future__ import annotations

import math

BITS, MSE = "bits", "mse"

_LN2 = math.log(2)


def in_unit(loss: float, unit: str) -> float:
    """A loss as it is shown: of nats in bits where the unit is of those, else as it is.

    Args:
        loss: As a task gives it.
        unit: "bits/byte", "bits/token" or "mse".
    """
    return loss / _LN2 if unit.startswith(BITS) else loss
