"""The ViT and the merger on a batch of equal grids -> visual tokens, under the hub's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sample.spec import FRAMES_PER_PATCH, MERGE, PATCH_PX, SampleSpec

VISION_THETA = 10_000.0


def make_vision_rope(grid: tuple[int, int], head_size: int) -> tuple[Tensor, Tensor]:
    """Cos and sin of the 2-D rotary angles, each float32[N, head_size], in the patches' order.

    Half of the frequencies turn with the row, half with the column; then both again (rotate-half).
    """
    rows, cols = grid
    row = (
        torch.arange(rows)
        .view(rows // MERGE, 1, MERGE, 1)
        .expand(-1, cols // MERGE, -1, MERGE)
        .reshape(-1)
    )
    col = (
        torch.arange(cols)
        .view(1, cols // MERGE, 1, MERGE)
        .expand(rows // MERGE, -1, MERGE, -1)
        .reshape(-1)
    )
    frequencies = VISION_THETA ** (-torch.arange(0, head_size // 2, 2) / (head_size // 2))
    angles = torch.cat([row[:, None] * frequencies, col[:, None] * frequencies], -1).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, channel d paired with d + head_size / 2. x: [..., head_size]."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Plain attention: at these lengths the fused kernel's backward pass takes ten times as long.

    q, k, v: [B, H, L, head_size]; bias: [L, L], added to the scores.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(-1) @ v


class VisionAttention(nn.Module):
    """Full attention within one temporal slice."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [B, N, width]; cos, sin: [N, head_size]."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        out = attend(rotate(q, cos, sin), rotate(k, cos, sin), v)
        return self.proj(out.transpose(1, 2).reshape(batch, length, width))


class VisionMlp(nn.Module):
    """Two linears around QuickGELU, x * sigmoid(1.702 x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, N, width]."""
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class VisionBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, spec: SampleSpec) -> None:
        super().__init__()
        width = spec.vision_width
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.attn = VisionAttention(width, spec.vision_heads)
        self.mlp = VisionMlp(width, width * spec.vision_mlp_ratio)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [B, N, width]."""
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """The hub keeps it as a Conv3d; over cut patches it is one matmul."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(
            3,
            width,
            (FRAMES_PER_PATCH, PATCH_PX, PATCH_PX),
            (FRAMES_PER_PATCH, PATCH_PX, PATCH_PX),
            bias=False,
        )

    def forward(self, patches: Tensor) -> Tensor:
        """patches: [B, N, 1176]."""
        return functional.linear(patches, self.proj.weight.flatten(1))


class Merger(nn.Module):
    """Four patches -> one token of the decoder's width."""

    def __init__(self, spec: SampleSpec) -> None:
        super().__init__()
        wide = spec.vision_width * MERGE * MERGE
        self.ln_q = nn.LayerNorm(spec.vision_width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, spec.hidden_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, N, width] -> [B, N / 4, hidden_size]."""
        batch, length, width = x.shape
        return self.mlp(self.ln_q(x).reshape(batch, length // MERGE**2, width * MERGE**2))


class Vit(nn.Module):
    """Patches of B equal pictures (or temporal slices) -> their visual tokens."""

    def __init__(self, spec: SampleSpec) -> None:
        super().__init__()
        self.head_size = spec.vision_width // spec.vision_heads
        self.patch_embed = PatchEmbed(spec.vision_width)
        self.blocks = nn.ModuleList(VisionBlock(spec) for _ in range(spec.vision_depth))
        self.merger = Merger(spec)

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """patches: [B, N, 1176], grid in patches -> [B, N / 4, hidden_size]."""
        cos, sin = (table.to(patches.dtype) for table in make_vision_rope(grid, self.head_size))
        x = self.patch_embed(patches)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.merger(x)
