"""Running means of named numbers, which stay on the device until they are needed."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torch_utils import distributed


class Collector:
    """Count, sum and sum of squares of all values added under each name since the last `take`.

    Adding never waits for the device. `take` is collective: every rank calls it with the same
    names.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.dtype = torch.float32 if device.type == 'mps' else torch.float64
        self.moments: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, name: str, values: Tensor | float) -> None:
        """Add values, of any shape, under a name."""
        x = torch.as_tensor(values, device=self.device).detach().to(self.dtype).flatten()
        if name not in self.moments:
            self.moments[name] = torch.zeros(3, dtype=self.dtype, device=self.device)
        self.moments[name][0] += x.numel()
        self.moments[name][1] += x.sum()
        self.moments[name][2] += x.square().sum()

    @torch.no_grad()
    def add_by_group(self, names: Sequence[str], values: Tensor, groups: Tensor) -> None:
        """Add values [B, ...], those of image i under names[groups[i]]; groups is int64 [B].

        Names without values are there, too, since all ranks must have the same ones.
        """
        x = values.detach().to(self.dtype).flatten(start_dim=1)
        count = torch.full_like(x[:, 0], x.shape[1])
        rows = torch.stack([count, x.sum(dim=1), x.square().sum(dim=1)], dim=1)
        # A product, and no scattered sum, whose order would be another one each time on a GPU.
        members = groups == torch.arange(len(names), device=groups.device).unsqueeze(1)
        totals = members.to(self.dtype) @ rows
        for name in names:
            if name not in self.moments:
                self.moments[name] = torch.zeros(3, dtype=self.dtype, device=self.device)
        torch._foreach_add_([self.moments[name] for name in names], list(totals.unbind()))

    def take(self) -> dict[str, dict[str, float]]:
        """Return {name: {num, mean, std}} over all ranks, and start anew."""
        if not self.moments:
            return {}
        names = sorted(self.moments)
        moments = torch.stack([self.moments[name] for name in names])
        totals = distributed.all_reduce_sum(moments).cpu()
        self.moments = {}
        return {name: _summary(*row) for name, row in zip(names, totals.tolist(), strict=True)}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moments of this rank, on the CPU."""
        return {name: moments.cpu() for name, moments in self.moments.items()}

    def restore(self, states: list[dict[str, Tensor]]) -> None:
        """Continue from the state_dicts of all ranks.

        If the number of ranks has changed, the first rank takes over everything.
        """
        if len(states) == distributed.get_world_size():
            mine = states[distributed.get_rank()]
        elif distributed.get_rank() == 0:
            mine = {name: torch.stack([state[name] for state in states]).sum(dim=0)
                    for name in states[0]}
        else:
            mine = {name: torch.zeros_like(moments) for name, moments in states[0].items()}
        self.moments = {name: moments.to(self.device, self.dtype) for name, moments in mine.items()}


def _summary(num: float, total: float, squares: float) -> dict[str, float]:
    if num == 0:
        return {'num': 0, 'mean': math.nan, 'std': math.nan}
    mean = total / num
    return {'num': int(num), 'mean': mean, 'std': math.sqrt(max(squares / num - mean**2, 0))}
