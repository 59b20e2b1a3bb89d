"""Run the model with any choice of layers quantized, on prepared prompts.

A lane is one or more variants of the model side by side on their way through the graphs of a part.
Variants fork off where they begin to differ and share every session after that: a stage's weights
are read once for all of them, and what stands before the difference runs once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from ...runtime.bundle.embeddings import Embeddings
from ...runtime.bundle.manifest import Manifest
from ..graph.feeds import VISION_GRAPHS, Prompt, make_decoder_feed, make_vision_feeds
from ..graph.files import read_graph
from ..graph.stages import OnTaps, Tensors, Walk
from ..quantize.bundle import TABLE
from .mixer import Choice, Mixer
from .token_rows import TableRounder

FLOAT: Choice = {}
LOGITS = "logits"
# (variant, index of the prompt, its predictions float32[P, V])
OnLogits = Callable[[str, int, NDArray[np.float32]], None]
# Of each picture and clip, in the order of the prompts, float32[..., D]
Embeds = list[NDArray[np.float32]]


class Lane:
    """Variants of one part, all at the same stage.

    Attributes:
        walks: by graph; each holds the inputs of the first variant, then of the second, ...
        names: of the variants.
    """

    def __init__(self, walks: Mapping[str, Walk], names: Sequence[str]) -> None:
        self.walks, self.names = dict(walks), list(names)

    @property
    def nbytes(self) -> int:
        """Of all values that are still needed."""
        lives = [live for walk in self.walks.values() for live in walk.live]
        return sum(value.nbytes for live in lives for value in live.values())

    def fork(self, name: str) -> Lane:
        """A new variant that has been the same as this lane's only one so far."""
        return Lane({graph: walk.fork() for graph, walk in self.walks.items()}, [name])

    def join(self, other: Lane) -> None:
        """Take another lane's variants along."""
        for graph, walk in self.walks.items():
            walk.join(other.walks[graph])
        self.names += other.names


class Trials:
    """One set of prompts and one float bundle.

    Attributes:
        stages: of "vision" and "decoder", names in the order they run.
        prompts: in order.
        feeds: of the vision graphs, in the order of the prompts.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        mixer: Mixer,
        prompts: Sequence[Prompt],
        *,
        keep_qdq: bool = False,
        num_threads: int = 0,
    ) -> None:
        """Prepare the inputs; nothing runs yet.

        Args:
            folder: of the float bundle.
            manifest: its manifest.
            mixer: the same bundle's.
            prompts: with the answers along which logits are compared.
            keep_qdq: there are FP8 layers, see `StageOptions`.
            num_threads: of one operator; 0: all cores.
        """
        self.prompts, self.feeds = prompts, make_vision_feeds(prompts)
        self._folder, self._mixer = folder, mixer
        self._options = {"num_threads": num_threads, "keep_qdq": keep_qdq}
        self._models = dict(mixer.models)
        self._models["decoder"] = keep_positions(mixer.models["decoder"])
        for graph in VISION_GRAPHS.values():
            if graph not in self._models and graph in manifest.graphs:
                self._models[graph] = read_graph(folder, manifest, graph)
        self._table = Embeddings(folder, manifest.embedding)
        self._rounder = TableRounder(self._table, mixer)
        lanes = {"vision": self.start_vision(), "decoder": self._start({"decoder": []}, [])}
        self.stages = {
            part: [stage.name for stage in lane.walks[part].stages] for part, lane in lanes.items()
        }

    def start_vision(self, name: str = "") -> Lane:
        """A lane of one variant in front of the first stage."""
        graphs = [g for g in VISION_GRAPHS.values() if g in self._models]
        feeds = {g: [feed.tensors for feed in self.feeds if feed.graph == g] for g in graphs}
        return self._start(feeds, [name])

    def start_decoder(self, embeds: Mapping[str, Embeds], choice: Choice) -> Lane:
        """A lane of variants by what the vision graphs have made of the pictures."""
        tensors = []
        for found in embeds.values():
            by_prompt: list[Embeds] = [[] for _ in self.prompts]
            for feed, rows in zip(self.feeds, found, strict=True):
                by_prompt[feed.prompt].append(rows)
            for prompt, visual in zip(self.prompts, by_prompt, strict=True):
                feed = make_decoder_feed(prompt, visual, self._table)
                if choice.get(TABLE, "float") != "float":
                    self._rounder.round(feed, prompt, choice)
                num = len(prompt.request.input_ids)
                feed["logit_index"] = num - 1 + np.arange(max(1, len(prompt.answer_ids)))
                tensors.append(feed)
        return self._start({"decoder": tensors}, list(embeds))

    def run(self, part: str, lane: Lane, index: int, choice: Choice) -> None:
        """Take a lane through one stage that is not the decoder's last."""
        change = self._mixer.change(part, self.stages[part][index], choice)
        for walk in lane.walks.values():
            walk.run_stage(index, change=change)

    def carry_vision(
        self, lane: Lane, index: int, own: Mapping[str, Choice], after: Choice
    ) -> dict[str, Embeds]:
        """Fork variants that differ in one stage and take them to the end.

        Args:
            lane: of one variant, at the stage; it stays there.
            index: of the stage.
            own: variant -> what is quantized in that stage.
            after: what is quantized behind it in all of them.
        """
        if index == len(self.stages["vision"]) - 1:
            found = [self.finish_vision(lane.fork(name), index, own[name]) for name in own]
            return {name: embeds for one in found for name, embeds in one.items()}
        return self.finish_vision(self._branch("vision", lane, index, own), index + 1, after)

    def carry_decoder(
        self,
        lane: Lane,
        index: int,
        own: Mapping[str, Choice],
        after: Choice,
        on_logits: OnLogits,
    ) -> None:
        """The same of the decoder; logits are handed over and not kept."""
        if index == len(self.stages["decoder"]) - 1:
            for name, choice in own.items():
                self.finish_decoder(lane.fork(name), index, choice, on_logits)
            return
        joined = self._branch("decoder", lane, index, own)
        self.finish_decoder(joined, index + 1, after, on_logits)

    def finish_vision(
        self, lane: Lane, index: int, choice: Choice, taps: Sequence[str] = (), on_taps=None
    ) -> dict[str, Embeds]:
        """Take a lane from a stage to the end.

        Args:
            lane: at the stage.
            index: of the stage.
            choice: of every variant from here on.
            taps: values of the last stage to hand to `on_taps(variant, feed index, values)`.
            on_taps: called for each.

        Returns:
            By variant.
        """
        last = len(self.stages["vision"]) - 1
        for i in range(index, last):
            self.run("vision", lane, i, choice)
        numbers = {
            g: [i for i, feed in enumerate(self.feeds) if feed.graph == g] for g in lane.walks
        }
        change = self._mixer.change("vision", self.stages["vision"][last], choice)
        for graph, walk in lane.walks.items():
            tell = _by_variant(lane, numbers[graph], on_taps) if on_taps else None
            walk.run_stage(last, taps, tell, change)
        found: dict[str, Embeds] = {}
        for variant, name in enumerate(lane.names):
            rows = {
                number: lane.walks[graph].live[variant * len(members) + place]["image_embeds"]
                for graph, members in numbers.items()
                for place, number in enumerate(members)
            }
            found[name] = [rows[number] for number in range(len(self.feeds))]
        return found

    def finish_decoder(self, lane: Lane, index: int, choice: Choice, on_logits: OnLogits) -> None:
        """Take a lane from a stage to the end; logits are handed over and not kept."""
        last = len(self.stages["decoder"]) - 1
        for i in range(index, last):
            self.run("decoder", lane, i, choice)
        members = list(range(len(self.prompts)))
        tell = _by_variant(lane, members, lambda name, i, found: on_logits(name, i, found[LOGITS]))
        change = self._mixer.change("decoder", self.stages["decoder"][last], choice)
        lane.walks["decoder"].run_stage(last, [LOGITS], tell, change)

    def _branch(self, part: str, lane: Lane, index: int, own: Mapping[str, Choice]) -> Lane:
        """One lane of variants that went through a stage each in its own way."""
        joined = None
        for name, choice in own.items():
            fork = lane.fork(name)
            self.run(part, fork, index, choice)
            if joined is None:
                joined = fork
            else:
                joined.join(fork)
        assert joined is not None  # nobody asks for no variant
        return joined

    def _start(self, feeds: Mapping[str, Sequence[Tensors]], names: Sequence[str]) -> Lane:
        walks = {
            graph: Walk(
                self._models[graph],
                self._folder,
                tensors,
                keep_outputs=graph != "decoder",
                **self._options,
            )
            for graph, tensors in feeds.items()
        }
        return Lane(walks, names)


def keep_positions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The decoder for one sequence, with logits of all positions in logit_index: float32[P, V]."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    width = next(v for v in changed.graph.input if v.name == "inputs_embeds")
    size = width.type.tensor_type.shape.dim[2].dim_value
    shape = onnx.numpy_helper.from_array(np.array([-1, size], np.int64), "rows_of_positions")
    changed.graph.initializer.append(shape)
    nodes: list[onnx.NodeProto] = []
    for node in changed.graph.node:
        if node.op_type == "GatherND":
            rows = f"{node.name}/rows/Reshape"
            nodes.append(
                onnx.helper.make_node("Reshape", [node.input[0], shape.name], [rows], rows)
            )
            node.input[0] = rows
            del node.attribute[:]  # batch_dims = 1: of each sequence one position
        nodes.append(node)
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    return changed


def _by_variant(lane: Lane, members: Sequence[int], tell) -> OnTaps:
    """Numbers of a joined walk's inputs -> (variant, number of the feed)."""

    def on_taps(number: int, values: Tensors) -> None:
        variant, place = divmod(number, len(members))
        tell(lane.names[variant], members[place], values)

    return on_taps
