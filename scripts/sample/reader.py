"""The whole sample: ViT and decoder under the hub's names, and the heads that only training has."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sample.cells import CELL_SLOTS, NUM_CHAR_CLASSES, NUM_INDEX_CLASSES, NUM_TAG_CLASSES
from sample.decoder import Decoder
from sample.spec import SampleSpec
from sample.vit import Vit


class CellHeads(nn.Module):
    """What lies in a visual token's cell: characters in order, the first one's place, the tag."""

    def __init__(self, spec: SampleSpec) -> None:
        super().__init__()
        self.sizes = [NUM_CHAR_CLASSES] * CELL_SLOTS + [NUM_INDEX_CLASSES, NUM_TAG_CLASSES]
        self.head = nn.Linear(spec.hidden_size, sum(self.sizes))

    def forward(self, image_embeds: Tensor) -> tuple[Tensor, ...]:
        """image_embeds: [M, D] -> one [M, classes] per slot, index and tag."""
        return self.head(image_embeds).split(self.sizes, -1)


class Reader(nn.Module):
    """A Qwen2-VL whose state_dict, without `cells`, is the checkpoint."""

    def __init__(self, spec: SampleSpec) -> None:
        super().__init__()
        self.spec = spec
        self.visual = Vit(spec)
        self.model = Decoder(spec)
        self.cells = CellHeads(spec)

    def init_weights(self, seed: int) -> None:
        """Normal weights, smaller where a residual branch ends; zero biases."""
        torch.manual_seed(seed)
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif weight.ndim > 1:
                fan_in = weight[0].numel()
                std = 0.02 if "embed_tokens" in name else fan_in**-0.5
                if name.endswith(
                    ("attn.proj.weight", "fc2.weight", "o_proj.weight", "down_proj.weight")
                ):
                    std *= (2 * self.spec.vision_depth) ** -0.5
                nn.init.normal_(weight, std=std)

    def answer_logits(
        self,
        input_ids: Tensor,
        visual_slots: Tensor,
        image_embeds: Tensor,
        position_ids: Tensor,
        answer_slots: Tensor,
    ) -> Tensor:
        """Logits where an answer token is predicted.

        Args:
            input_ids: int64[B, L], right-padded.
            visual_slots: bool[B, L], the pads that image_embeds fill, row after row.
            image_embeds: [M, D].
            position_ids: int64[3, B, L].
            answer_slots: bool[B, L], the positions whose next token belongs to the answer.

        Returns:
            [A, V], A = the number of answer tokens.
        """
        embeds = self.model.embed_tokens(input_ids)
        embeds = embeds.masked_scatter(visual_slots[..., None], image_embeds.to(embeds.dtype))
        hidden = self.model(embeds, position_ids)[answer_slots]
        return functional.linear(hidden, self.model.embed_tokens.weight)
