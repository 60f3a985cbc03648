"""The feed-forward block.

Shapes: B batch, T tokens, C hidden_size, F intermediate_size.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020, eq. 6; parameter names are Hugging Face's.
    """

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, T, C) to (B, T, C)."""
        return self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))  # through (B, T, F)
