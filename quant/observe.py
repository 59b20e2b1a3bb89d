"""A bundle as a side of a comparison: the runtime's own parts, with an eye on what passes through.

The vision graph gets one more output, the sum behind its last block; logits are kept as they reach
the sampler, which can be told what to pick: teacher forcing through the runtime's own loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from ..runtime.backend import VisionGraph
from ..runtime.bicubic import count_cpus
from ..runtime.embeddings import Embeddings
from ..runtime.errors import BackendError, BundleError
from ..runtime.generate import DecoderPrompt, Generation
from ..runtime.kv_cache import plan_capacity, plan_new_tokens
from ..runtime.manifest import Manifest, read_manifest
from ..runtime.options import GenerationOptions, SamplingRule
from ..runtime.ort_backend import OrtBackend
from ..runtime.patches import VisualInput, normalize_patches
from ..runtime.request import RequestMaker, encode_visuals, make_decoder_prompt
from ..runtime.sampling import Sampler
from ..runtime.writer import AnswerWriter
from .buckets import name_bucket
from .examples import Example
from .graph_files import read_graph
from .reference import NotFiniteError, Observation, Visual
from .stages import make_options, open_session

MERGER_NORM = "visual.merger.ln_q.weight"
GREEDY = SamplingRule(
    do_sample=False, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, seed=None
)


class BundleSide:
    """A bundle on the CPU; see `reference.Side`."""

    def __init__(self, bundle: str | Path, num_threads: int | None = None) -> None:
        """Read the small files; graphs are loaded when they are needed.

        Raises:
            BundleError: the bundle is missing or damaged.
        """
        folder = Path(bundle)
        self.manifest = read_manifest(folder)
        self._name = folder.absolute().name
        self._maker = RequestMaker(folder, self.manifest, None)
        self._embeddings = Embeddings(folder, self.manifest.embedding)
        self._backend = _TappedBackend(folder, self.manifest, num_threads)

    @property
    def name(self) -> str:
        """The folder's."""
        return self._name

    def observe(
        self,
        example: Example,
        max_new_tokens: int,
        *,
        ignore_eos: bool = False,
        forced: Sequence[int] = (),
    ) -> Observation:
        """Answer greedily, see `reference.Side`.

        Args:
            example: to answer.
            max_new_tokens: the longest answer; 0 looks at the pictures alone.
            ignore_eos: run on past the tokens that end an answer.
            forced: the reference's answer; logits are then those before each of its tokens. The
                bundle's own answer is not read off them: it goes its own way from the first token
                that it would choose differently.
        """
        request = self._maker.make(example.messages)
        visuals = tuple(self._encode(visual) for visual in request.visuals)
        decoder = self.manifest.decoder
        if not max_new_tokens:
            return Observation(visuals, (), "", np.empty((0, decoder.vocab_size), np.float32))
        embeds = [visual.image_embeds for visual in visuals]
        prompt = make_decoder_prompt(request, embeds, decoder.hidden_size)
        room = plan_new_tokens(prompt.length, None, decoder.max_position_embeddings)
        limit = min(max_new_tokens, room)
        told = self._run(prompt, len(forced), True, forced) if forced else None
        own = told
        if told is None or told.best_ids != tuple(forced):
            own = self._run(prompt, limit, ignore_eos)
        assert own is not None
        return Observation(visuals, own.best_ids, own.text, (told or own).logits)

    def close(self) -> None:
        """Free the graphs."""
        self._backend.close()

    def _encode(self, visual: VisualInput) -> Visual:
        pixels, vision = self.manifest.pixels, self.manifest.vision
        self._backend.before_merger = []
        (embeds,) = encode_visuals(
            self._backend, [visual], self.manifest.decoder.hidden_size, lambda: False
        )
        patches = normalize_patches(
            visual.pixel_values,
            pixels.image_mean,
            pixels.image_std,
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
        )
        return Visual(
            bucket=name_bucket(visual, vision),
            pixel_values=patches.reshape(-1, patches.shape[-1]),
            before_merger=np.concatenate(self._backend.before_merger),
            image_embeds=embeds,
        )

    def _run(
        self, prompt: DecoderPrompt, limit: int, ignore_eos: bool, forced: Sequence[int] = ()
    ) -> _Run:
        sampler = _KeepingSampler(prompt.input_ids, forced)
        writer = AnswerWriter(
            sampler,
            self._maker.tokenizer,
            GenerationOptions(ignore_eos=ignore_eos),
            self.manifest.tokens.eos,
            limit,
        )
        cache = self._backend.make_cache(1, plan_capacity([prompt.length + limit]))
        generation = Generation(
            self._backend, self._embeddings, cache, [prompt], [writer], lambda: False
        )
        for _ in generation.run():
            pass
        return _Run(tuple(sampler.best_ids), writer.text, np.stack(sampler.logits))


@dataclass(frozen=True, slots=True)
class _Run:
    """One pass of the decoder: what it would pick before each token, the text, the logits."""

    best_ids: tuple[int, ...]
    text: str
    logits: NDArray[np.float32]  # [P, V]


class _KeepingSampler(Sampler):
    """Keeps all logits; picks the tokens it was told to, else the best."""

    def __init__(self, prompt_ids: NDArray[np.int64], forced: Sequence[int]) -> None:
        super().__init__(GREEDY, prompt_ids)
        self.logits: list[NDArray[np.float32]] = []
        self.best_ids: list[int] = []
        self._forced = forced

    def pick(self, logits: NDArray[np.floating]) -> int:
        if not np.isfinite(logits).all():
            raise NotFiniteError("logits hold NaN or infinity")
        place = len(self.logits)
        self.logits.append(logits.astype(np.float32))
        self.best_ids.append(super().pick(logits))
        return self._forced[place] if self._forced else self.best_ids[-1]


class _TappedBackend(OrtBackend):
    """The runtime's backend, whose vision graphs also tell what enters the merger.

    Attributes:
        before_merger: float32[patches, C] of each call since the list was last replaced.
    """

    def __init__(self, folder: Path, manifest: Manifest, num_threads: int | None) -> None:
        super().__init__(folder, manifest, providers="cpu", num_threads=num_threads)
        self.before_merger: list[NDArray[np.float32]] = []
        self._bundle = folder
        self._tap_threads = num_threads or count_cpus()
        self._tapped: dict[str, tuple[ort.InferenceSession, tuple[str, str]]] = {}

    def encode_images(
        self, graph: VisionGraph, pixel_values: NDArray[np.uint8], position_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        session, taps = self._load_tapped(graph)
        feed = {"pixel_values": pixel_values, "position_ids": position_ids}
        try:
            results = session.run(["image_embeds", *taps], feed)
        except Exception as error:  # onnxruntime has no base class of its own
            raise BackendError(f"the {graph} graph failed: {error}") from error
        image_embeds, residual, branch = (np.asarray(result) for result in results)
        self.before_merger.append(residual + branch)
        return image_embeds

    def close(self) -> None:
        super().close()
        self._tapped.clear()

    def _load_tapped(self, graph: VisionGraph) -> tuple[ort.InferenceSession, tuple[str, str]]:
        if graph not in self._tapped:
            spec = self._manifest.graphs.get(graph)
            if spec is None:
                raise BundleError(f"the bundle has no {graph} graph: export it again")
            options = make_options(self._bundle, self._tap_threads, keep_qdq=spec.keep_qdq)
            model = read_graph(self._bundle, self._manifest, graph)
            taps = find_merger_inputs(model.graph)
            model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in taps)
            self._tapped[graph] = open_session(model, options), taps
        return self._tapped[graph]


def find_merger_inputs(graph: onnx.GraphProto) -> tuple[str, str]:
    """The two values whose sum enters the merger: the residual stream and the last block's MLP.

    The sum and not its norm, whose scale a smoothed bundle has moved into the next weights.

    Raises:
        BundleError: the graph has no merger norm, or one of another form.
    """
    producers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if MERGER_NORM in node.input:
            if node.op_type == "LayerNormalization":  # of a TensorRT graph: the sum stands apart
                node = producers[node.input[0]]
                if node.op_type == "Cast":
                    node = producers[node.input[0]]
            if node.op_type in ("SkipLayerNormalization", "Add"):
                return node.input[0], node.input[1]
            raise BundleError(f"{node.name} is a {node.op_type}, needed a sum before the merger")
    raise BundleError(f"the graph {graph.name} has no node that reads {MERGER_NORM}")
