"""The optimiser of both starter trainings: Muon for weight matrices, AdamW for the rest."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


@torch.no_grad()
def orthogonalised(matrix: Tensor, steps: int = 4) -> Tensor:
    """Roughly U V^T of the matrix's U S V^T, by Newton-Schulz iteration with Muon's coefficients."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose step for a weight matrix is made orthogonal, so that no direction is starved.

    Convolution kernels count as matrices of (out, in x height x width). Steps are scaled to the size that
    AdamW's have, so one learning rate serves both (Liu et al., 2025, "Muon is scalable for LLM training").
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step for every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(momentum, group["momentum"]).flatten(1)
                step = orthogonalised(ahead) * 0.2 * math.sqrt(max(ahead.shape))
                parameter.add_(step.view_as(parameter), alpha=-group["lr"])


def new_optimisers(model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for kernels with room for many directions; AdamW for norms, biases, embeddings and narrow ends."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = [
        p
        for p in model.parameters()
        if p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= 16 and id(p) not in embeddings
    ]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, lr=learning_rate),
        torch.optim.AdamW(rest, lr=learning_rate / 2, betas=(0.9, 0.99), weight_decay=0.0),
    ]
