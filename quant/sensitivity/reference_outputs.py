"""Keep the float model's embeddings and logits, with which every variant is compared."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .damage import Buckets, Damage, Damages, add_up, measure_embeds, measure_logits
from .mixer import Choice
from .variants import FLOAT, Embeds, Lane, OnLogits, Trials

Found = dict[str, list[tuple[str, Damage]]]


class Yardstick:
    """Runs the float model once.

    Attributes:
        embeds: of each picture.
        logits: of each prompt, float32[P, V].
    """

    def __init__(self, trials: Trials, buckets: Buckets) -> None:
        self._trials = trials
        visuals = [visual for prompt in trials.prompts for visual in prompt.request.visuals]
        self.feed_buckets = [buckets.name(visual) for visual in visuals]
        self.prompt_buckets = [buckets.name_prompt(prompt) for prompt in trials.prompts]
        self.embeds = trials.finish_vision(trials.start_vision(), 0, FLOAT)[""]
        logits: dict[int, NDArray[np.float32]] = {}
        lane = trials.start_decoder({"": self.embeds}, FLOAT)
        trials.finish_decoder(lane, 0, FLOAT, lambda _, prompt, rows: logits.update({prompt: rows}))
        self.logits = [logits[prompt] for prompt in range(len(trials.prompts))]

    def measure_embeds(self, found: Mapping[str, Embeds]) -> Found:
        """Damage of each picture, by variant."""
        return {
            name: [
                (bucket, measure_embeds(got, needed))
                for bucket, got, needed in zip(self.feed_buckets, embeds, self.embeds, strict=True)
            ]
            for name, embeds in found.items()
        }

    def collect(self, found: Found) -> OnLogits:
        """What measures logits as they come and appends the damage to that of their variant."""

        def on_logits(name: str, prompt: int, rows: NDArray[np.float32]) -> None:
            damage = measure_logits(rows, self.logits[prompt])
            found.setdefault(name, []).append((self.prompt_buckets[prompt], damage))

        return on_logits

    def measure_whole(self, embeds: Mapping[str, Embeds], choice: Choice) -> dict[str, Damages]:
        """Damage by variant, of its embeddings and of what the decoder makes of them.

        Args:
            embeds: by variant.
            choice: of the decoder.
        """
        found = self.measure_embeds(embeds)
        lane = self._trials.start_decoder(embeds, choice)
        self._trials.finish_decoder(lane, 0, choice, self.collect(found))
        return {name: add_up(damages) for name, damages in found.items()}

    def measure_decoder(
        self, lane: Lane, index: int, own: Mapping[str, Choice], after: Choice
    ) -> dict[str, Damages]:
        """Damage by variant of what differs in one stage of the decoder, see `carry_decoder`."""
        found: Found = {}
        self._trials.carry_decoder(lane, index, own, after, self.collect(found))
        return {name: add_up(damages) for name, damages in found.items()}
