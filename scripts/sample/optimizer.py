"""Muon for the matrices, AdamW for the rest, on fp32 masters of bf16 weights.

Muon (K. Jordan, 2024) steps along the nearest orthogonal matrix to the momentum. With AdamW alone
the ViT read about a third of the characters after 400 steps; Muon learns the same in fewer.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
import torch.distributed as dist
from torch import Tensor

from sample.reader import Reader

WEIGHT_DECAY = 0.02
MAX_GRAD_NORM = 1.0
MUON_MOMENTUM = 0.95
MUON_RATE = 3.0  # times AdamW's rate, for steps of 0.2 RMS
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic that drives singular values to about 1
NUM_NEWTON_STEPS = 5


def make_learning_rate(
    step: int, start: int, end: int, peak: float, warmup: int, final_share: float
) -> float:
    """Linear warm-up from `start`, then a cosine that reaches peak * final_share at `end`."""
    if step - start < warmup:
        return peak * (step - start + 1) / warmup
    progress = min(1.0, (step - start - warmup) / max(1, end - start - warmup))
    return peak * (final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress)))


def orthogonalize(matrices: Tensor) -> Tensor:
    """Each matrix's singular values moved to about 1. matrices: [K, rows, cols]."""
    a, b, c = NEWTON_SCHULZ
    x = (matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(torch.bfloat16)
    for _ in range(NUM_NEWTON_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.float()


def split_square(name: str, weight: Tensor) -> Tensor:
    """A matrix as float32[K, rows, cols] with rows <= cols; q, k and v of a fused one apart."""
    weight = weight.view(3, -1, weight.shape[1]) if name.endswith("qkv.weight") else weight[None]
    return weight.mT if weight.shape[1] > weight.shape[2] else weight


class MasterOptimizer:
    """The reader computes in bf16; this holds the weights that learn."""

    def __init__(self, reader: Reader) -> None:
        self.names = [name for name, _ in reader.named_parameters()]
        self.weights = list(reader.parameters())
        self.masters = [w.detach().float().clone().requires_grad_() for w in self.weights]
        self.by_muon = [
            w.ndim == 2 and name.startswith(("visual.blocks", "visual.merger", "model.layers"))
            for name, w in zip(self.names, self.weights, strict=True)
        ]
        self.momenta = {
            i: torch.zeros_like(self.masters[i], requires_grad=False)
            for i, muon in enumerate(self.by_muon)
            if muon
        }
        rest = [m for m, muon in zip(self.masters, self.by_muon, strict=True) if not muon]
        groups = [
            {"params": [m for m in rest if m.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [m for m in rest if m.ndim == 1], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8, fused=True)

    def step(self, learning_rate: float) -> float:
        """Average, clip, update, round to bf16. Returns the gradient norm before the clip."""
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights]
        flat = torch.cat([grad.float().flatten() for grad in grads])
        if dist.is_initialized():
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
        norm = float(flat.norm())
        if not math.isfinite(norm):
            raise ValueError(f"the gradient norm is {norm}; lower the learning rate and --resume")
        flat *= min(1.0, MAX_GRAD_NORM / (norm + 1e-6))
        parts = flat.split([w.numel() for w in self.weights])
        for master, part, weight in zip(self.masters, parts, self.weights, strict=True):
            master.grad = part.view_as(master)
            weight.grad = None
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        with torch.no_grad():
            self._step_muon(learning_rate * MUON_RATE)
        self.adam.step()
        with torch.no_grad():
            for master, weight in zip(self.masters, self.weights, strict=True):
                weight.copy_(master)
        return norm

    def _step_muon(self, learning_rate: float) -> None:
        """Matrices of one shape go through the iteration together, each process its share."""
        rank, num_ranks = (
            (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        )
        stacks, size = defaultdict(list), 0
        targets = []
        for i, momentum in self.momenta.items():
            grad = self.masters[i].grad
            if not grad.any():  # the decoder, as long as only the ViT learns
                continue
            momentum.lerp_(grad, 1 - MUON_MOMENTUM)
            self.masters[i].mul_(1 - learning_rate * WEIGHT_DECAY)
            nesterov = split_square(self.names[i], grad.lerp(momentum, MUON_MOMENTUM))
            for part, target in zip(
                nesterov, split_square(self.names[i], self.masters[i]), strict=True
            ):
                if len(targets) % num_ranks == rank:
                    stacks[part.shape].append((size, part))
                targets.append((size, target))
                size += part.numel()
        steps = torch.zeros(size)
        for shape, members in stacks.items():
            done = orthogonalize(torch.stack([part for _, part in members]))
            for (start, part), step in zip(members, done, strict=True):
                steps[start : start + part.numel()] = (step * 0.2 * max(shape) ** 0.5).flatten()
        if num_ranks > 1:
            dist.all_reduce(steps)
        for start, target in targets:
            step = steps[start : start + target.numel()].view_as(target)
            target.sub_(step, alpha=learning_rate)
        for i in self.momenta:
            self.masters[i].grad = None

    def state(self) -> dict[str, object]:
        """For the resumable checkpoint."""
        return {
            "masters": [m.detach() for m in self.masters],
            "momenta": self.momenta,
            "adam": self.adam.state_dict(),
        }

    def load(self, state: dict[str, object]) -> None:
        """The inverse of state()."""
        with torch.no_grad():
            for master, weight, saved in zip(
                self.masters, self.weights, state["masters"], strict=True
            ):
                master.copy_(saved)
                weight.copy_(saved)
        self.momenta = state["momenta"]
        self.adam.load_state_dict(state["adam"])
