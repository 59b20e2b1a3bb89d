"""The M-RoPE decoder on right-padded batches -> hidden states; parameters carry the hub's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sample.spec import SampleSpec
from sample.vit import attend, rotate


def make_mrope(position_ids: Tensor, spec: SampleSpec) -> tuple[Tensor, Tensor]:
    """Cos and sin: float32[B, 1, L, head_size] of position_ids: int64[3, B, L] (t, h, w).

    The head's frequencies are cut into sections, one per axis, and doubled for rotate-half.
    """
    half = spec.head_size // 2
    frequencies = spec.rope_theta ** (-torch.arange(half) / half)
    axis = torch.repeat_interleave(torch.arange(3), torch.tensor(spec.mrope_section))
    angles = position_ids[axis].permute(1, 2, 0) * frequencies  # B, L, half
    angles = torch.cat([angles, angles], -1)[:, None]
    return angles.cos(), angles.sin()


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, spec: SampleSpec) -> None:
        super().__init__()
        self.spec = spec
        kv_width = spec.num_kv_heads * spec.head_size
        self.q_proj = nn.Linear(spec.hidden_size, spec.hidden_size)
        self.k_proj = nn.Linear(spec.hidden_size, kv_width)
        self.v_proj = nn.Linear(spec.hidden_size, kv_width)
        self.o_proj = nn.Linear(spec.hidden_size, spec.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [B, L, D]. Right padding needs no mask: causal attention never looks right."""
        batch, length, width = x.shape
        spec = self.spec
        q, k, v = (
            proj(x).view(batch, length, -1, spec.head_size).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        group = spec.num_heads // spec.num_kv_heads
        k, v = rotate(k, cos, sin).repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        future = torch.full((length, length), float("-inf"), dtype=x.dtype).triu(1)
        out = attend(rotate(q, cos, sin), k, v, future)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, spec: SampleSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.hidden_size, spec.mlp_size, bias=False)
        self.up_proj = nn.Linear(spec.hidden_size, spec.mlp_size, bias=False)
        self.down_proj = nn.Linear(spec.mlp_size, spec.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, L, D]."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, spec: SampleSpec) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(spec.hidden_size, eps=spec.norm_eps)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = nn.RMSNorm(spec.hidden_size, eps=spec.norm_eps)
        self.mlp = Mlp(spec)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [B, L, D]."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedded tokens -> normed hidden states; the embedding is also the head."""

    def __init__(self, spec: SampleSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.num_layers))
        self.norm = nn.RMSNorm(spec.hidden_size, eps=spec.norm_eps)

    def forward(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        """inputs_embeds: [B, L, D], position_ids: int64[3, B, L] -> [B, L, D]."""
        cos, sin = (table.to(inputs_embeds.dtype) for table in make_mrope(position_ids, self.spec))
        x = inputs_embeds
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)
