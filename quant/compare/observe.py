"""Observe a bundle as one side of a comparison, through the runtime's own engine.

The vision graph gets one more output, the sum behind its last block; logits are kept as they reach
the sampler, which can be told what to pick: teacher forcing through the runtime's own loop. Answers
are those of the engine that `vlmedge run` asks, by the bundle's own settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from ...runtime.backends.backend import VisionGraph
from ...runtime.backends.ort.backend import OrtBackend
from ...runtime.bundle.embeddings import Embeddings
from ...runtime.bundle.manifest import Manifest
from ...runtime.bundle.manifest_file import read_manifest
from ...runtime.decode.encode import plan_vision_calls, stack_slices
from ...runtime.decode.sampling import Sampler
from ...runtime.decode.writer import make_writer
from ...runtime.engine import Engine, Job
from ...runtime.errors import BackendError, BundleError
from ...runtime.inputs.patches import VisualInput, normalize_patches
from ...runtime.inputs.request import Request, RequestMaker
from ...runtime.options import GenerationOptions, SamplingRule, make_sampling_rule
from ...runtime.threads import count_cpus
from ..data.buckets import name_bucket
from ..data.examples import Example
from ..graph.files import read_graph
from ..graph.stages import StageOptions, open_session
from .decoding import describe_decoding, limit_answer, make_own_options, make_plain_options
from .reference import NotFiniteError, Observation, Visual
from .settings import Settings, read_bundle_settings

MERGER_NORM = "visual.merger.ln_q.weight"


class BundleSide:
    """A bundle on the CPU; see `reference.Side`."""

    def __init__(self, bundle: str | Path, num_threads: int | None = None) -> None:
        """Read the small files; graphs are loaded when they are needed.

        Raises:
            BundleError: the bundle is missing or damaged.
        """
        self._folder = Path(bundle)
        self.manifest = read_manifest(self._folder)
        self._name = self._folder.absolute().name
        self._maker = RequestMaker(self._folder, self.manifest, None)
        self._backend = _TappedBackend(self._folder, self.manifest, num_threads)
        self._engine = Engine(
            self.manifest,
            self._maker.tokenizer,
            Embeddings(self._folder, self.manifest.embedding),
            self._backend,
            make_sampler=self._make_sampler,
        )
        self._forced: Sequence[int] = ()
        self._sampler: _KeepingSampler | None = None

    @property
    def name(self) -> str:
        """The folder's."""
        return self._name

    @property
    def settings(self) -> Settings:
        """Of its manifest and small files."""
        return read_bundle_settings(self._folder, self.manifest)

    @property
    def decoding(self) -> str:
        """By its manifest."""
        return describe_decoding(self.manifest.generation)

    def observe(
        self,
        example: Example,
        max_new_tokens: int,
        *,
        is_plain: bool = False,
        forced: Sequence[int] = (),
    ) -> Observation:
        """Answer and keep everything on the way, see `reference.Side`.

        Args:
            example: to answer.
            max_new_tokens: the longest answer; 0 looks at the pictures alone.
            is_plain: the likeliest token each time, past every end.
            forced: the reference's answer; logits are then those before each of its tokens. The
                bundle's own answer is read off them only as far as it is the same: it ends by the
                bundle's own end tokens, and goes its own way from the first other token.
        """
        request = self._maker.make(example.messages)
        self._backend.forget()
        visuals = self._look(request.visuals)
        if not max_new_tokens:
            empty = np.empty((0, self.manifest.decoder.vocab_size), np.float32)
            return Observation(visuals, (), "", empty, False)
        length, context = len(request.input_ids), self.manifest.context_length
        limit = limit_answer(length, max_new_tokens, context)
        options = make_plain_options(limit) if is_plain else make_own_options(example.id, limit)
        if not forced:
            return self._answer(request, options, visuals)
        told = self._answer(request, make_plain_options(len(forced)), visuals, forced)
        own = self._replay(request, options, told.logits, forced)
        own = own or self._answer(request, options, visuals)
        return dataclasses.replace(own, visuals=visuals, logits=told.logits)

    def close(self) -> None:
        """Free the graphs."""
        self._engine.close()

    def _look(self, inputs: Sequence[VisualInput]) -> tuple[Visual, ...]:
        """All pictures and clips through the ViT, in the very calls that the engine makes."""
        pixels, vision = self.manifest.pixels, self.manifest.vision
        embeds: list[list[NDArray[np.float32]]] = [[] for _ in inputs]
        before: list[list[NDArray[np.float32]]] = [[] for _ in inputs]
        for graph, batch in plan_vision_calls(inputs):
            rows, sums = self._backend.encode_tapped(graph, *stack_slices(inputs, batch))
            for (index, _), row, total in zip(batch, rows, sums, strict=True):
                embeds[index].append(row)
                before[index].append(total)
        visuals = []
        for index, visual in enumerate(inputs):
            patches = normalize_patches(
                visual.pixel_values,
                pixels.image_mean,
                pixels.image_std,
                patch_size=vision.patch_size,
                temporal_patch_size=vision.temporal_patch_size,
            )
            visuals.append(
                Visual(
                    bucket=name_bucket(visual, vision),
                    pixel_values=patches.reshape(-1, patches.shape[-1]),
                    before_merger=np.concatenate(before[index]),
                    image_embeds=np.concatenate(embeds[index]),
                )
            )
        return tuple(visuals)

    def _answer(
        self,
        request: Request,
        options: GenerationOptions,
        visuals: tuple[Visual, ...],
        forced: Sequence[int] = (),
    ) -> Observation:
        """One run of the engine; the pictures' rows are those that `_look` has computed."""
        self._forced = forced
        (answer,) = self._engine.start(Job([request], [options], 0.0), None).finish()
        assert self._sampler is not None
        logits = np.stack(self._sampler.logits)
        ended = answer.finish_reason == "stop"
        return Observation(visuals, answer.token_ids, answer.text, logits, ended)

    def _replay(
        self,
        request: Request,
        options: GenerationOptions,
        logits: NDArray[np.float32],
        forced: Sequence[int],
    ) -> Observation | None:
        """The bundle's own answer, where it ends before it leaves the forced one; else None."""
        assert options.max_new_tokens is not None
        defaults, end_ids = self.manifest.generation, self.manifest.tokens.eos
        rule = make_sampling_rule(options, defaults, end_ids, options.max_new_tokens)
        writer = make_writer(
            Sampler(rule, request.input_ids),
            self._maker.tokenizer,
            options,
            defaults,
            end_ids,
            request.input_ids,
            options.max_new_tokens,
        )
        for row, token_id in zip(logits, forced, strict=True):
            writer.write(row)
            if writer.finish_reason:
                ended = writer.finish_reason == "stop"
                return Observation((), tuple(writer.token_ids), writer.text, logits, ended)
            if writer.token_ids[-1] != token_id:
                return None
        return None

    def _make_sampler(self, rule: SamplingRule, prompt_ids: NDArray[np.int64]) -> Sampler:
        self._sampler = _KeepingSampler(rule, prompt_ids, self._forced)
        return self._sampler


class _KeepingSampler(Sampler):
    """Keeps all logits; picks the tokens it was told to, else by its rule."""

    def __init__(
        self, rule: SamplingRule, prompt_ids: NDArray[np.int64], forced: Sequence[int]
    ) -> None:
        super().__init__(rule, prompt_ids)
        self.logits: list[NDArray[np.float32]] = []
        self._forced = forced

    def pick(self, logits: NDArray[np.floating]) -> int:
        if not np.isfinite(logits).all():
            raise NotFiniteError("logits hold NaN or infinity")
        place = len(self.logits)
        self.logits.append(logits.astype(np.float32))
        return self._forced[place] if self._forced else super().pick(logits)


class _TappedBackend(OrtBackend):
    """The runtime's backend, whose vision graphs also tell what enters the merger.

    What it has encoded since the last `forget` is not computed again.
    """

    def __init__(self, folder: Path, manifest: Manifest, num_threads: int | None) -> None:
        super().__init__(folder, manifest, providers="cpu", num_threads=num_threads)
        self._bundle = folder
        self._tap_threads = num_threads or count_cpus()
        self._tapped: dict[str, tuple[ort.InferenceSession, tuple[str, str]]] = {}
        self._seen: dict[
            tuple[str, bytes, bytes], tuple[NDArray[np.float32], NDArray[np.float32]]
        ] = {}

    def encode_images(
        self, graph: VisionGraph, pixel_values: NDArray[np.uint8], position_ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        return self.encode_tapped(graph, pixel_values, position_ids)[0]

    def encode_tapped(
        self, graph: VisionGraph, pixel_values: NDArray[np.uint8], position_ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Image embeddings float32[I, M, D], and float32[I, N, C] before the merger."""
        key = (graph, pixel_values.tobytes(), position_ids.tobytes())
        if key not in self._seen:
            self._seen[key] = self._run_tapped(graph, pixel_values, position_ids)
        return self._seen[key]

    def forget(self) -> None:
        """Another example begins."""
        self._seen.clear()

    def close(self) -> None:
        super().close()
        self._tapped.clear()
        self._seen.clear()

    def _run_tapped(
        self, graph: VisionGraph, pixel_values: NDArray[np.uint8], position_ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        session, taps = self._load_tapped(graph)
        feed = {"pixel_values": pixel_values, "position_ids": position_ids}
        try:
            results = session.run(["image_embeds", *taps], feed)
        except Exception as error:  # onnxruntime has no base class of its own
            raise BackendError(f"the {graph} graph failed: {error}") from error
        image_embeds, residual, branch = (np.asarray(result) for result in results)
        total = residual + branch
        return image_embeds, total.reshape(len(image_embeds), -1, total.shape[-1])

    def _load_tapped(self, graph: VisionGraph) -> tuple[ort.InferenceSession, tuple[str, str]]:
        if graph not in self._tapped:
            spec = self._manifest.graphs.get(graph)
            if spec is None:
                raise BundleError(f"the bundle has no {graph} graph: export it again")
            options = StageOptions(self._bundle, self._tap_threads, keep_qdq=spec.keep_qdq)
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
