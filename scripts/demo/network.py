"""The demonstration's PyTorch network: standardises its own inputs and answers one logit per row."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


class Network(nn.Module):
    """Two hidden layers over standardised columns. In: `[n, 10]` float32; out: `[n, 1]` logits."""

    def __init__(self, mean: np.ndarray, scale: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.layers = nn.Sequential(nn.Linear(len(mean), 48), nn.SiLU(), nn.Linear(48, 24), nn.SiLU(), nn.Linear(24, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One logit per row."""
        return self.layers((x - self.mean) / self.scale)


def fit_network(x: np.ndarray, y: np.ndarray, epochs: int = 60, seed: int = 0) -> Network:
    """Trains with Adam and weight decay on mini-batches; the same seed gives the same network on one machine."""
    torch.manual_seed(seed)
    torch.set_num_threads(2)
    network = Network(x.mean(axis=0), x.std(axis=0) + 1e-6)
    optimiser = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=3e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    inputs, targets = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)[:, None]
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(512):
            optimiser.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(network(inputs[rows]), targets[rows]).backward()
            optimiser.step()
        schedule.step()
    network.eval()
    return network
