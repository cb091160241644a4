"""CH2 and CH3 counts to the three network inputs, in fp32, on the device that runs the network.

Decides nothing that models/srh/channels.py has not decided: the same steps in the same order give the same bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Scaling(nn.Module):
    """What `to_network_input` does, as a module in front of a network."""

    divisor: Tensor

    def __init__(self, scale: float, third_channel_base: float) -> None:
        super().__init__()
        self._base = float(torch.tensor(third_channel_base, dtype=torch.float32))
        is_power_of_two = math.frexp(scale)[0] == 0.5
        self._factor = 1 / scale if is_power_of_two else None
        rounded = float(torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("divisor", torch.tensor(rounded, dtype=torch.float64), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The bits of raw uint16 counts as int16 [B, 2, H, W] to float32 [B, 3, H, W] within [0, 1].

        int16 because torch has few kernels for uint16.
        """
        counts_BCHW = torch.bitwise_and(x_BCHW.to(torch.int32), 0xFFFF).to(torch.float32)
        third_B1HW = counts_BCHW[:, 1:] - counts_BCHW[:, :1] + self._base
        sums_BCHW = torch.cat([third_B1HW, counts_BCHW], dim=1)
        return self._scaled(sums_BCHW).clamp(0.0, 1.0)

    def _scaled(self, x_BCHW: Tensor) -> Tensor:
        if self._factor is not None:
            return x_BCHW * self._factor
        # Cards divide fp32 by multiplying with a rounded inverse. A quotient of fp32 numbers that is rounded to fp64
        # first rounds to the right fp32 number.
        return (x_BCHW.to(torch.float64) / self.divisor).to(torch.float32)
