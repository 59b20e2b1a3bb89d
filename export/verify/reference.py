"""transformers on a checkpoint as the reference of a comparison: its own resizing, ViT and decoder.

They run in float32 and go their own whole way from the pictures, as our loader opened them:
resizing, cutting, the prompt by the checkpoint's own template and tokenizer, positions, cache, and
generate() by the checkpoint's own generation settings. Nothing is taken from the bundle that it is
compared with, and none of the checkpoint's settings is read by us. Ours are the patches of clips,
for which transformers needs torchvision; prompts whose text spells a special token, which
transformers would obey; and where a checkpoint samples, our sampler draws from transformers'
logits, since torch's generator would draw other tokens from equal probabilities.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, LogitsProcessor, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils.logging import disable_progress_bar

from ...quant.compare.decoding import (
    describe_decoding,
    limit_answer,
    make_own_options,
    make_plain_options,
)
from ...quant.compare.layer_rows import OnRows, OnStep
from ...quant.compare.reference import Observation, Visual
from ...quant.compare.settings import Settings
from ...quant.data.buckets import SeenSize
from ...quant.data.examples import Example
from ...quant.graph.feeds import Prompt
from ...runtime.bundle.manifest import Manifest
from ...runtime.bundle.manifest_file import read_manifest
from ...runtime.decode.sampling import Sampler
from ...runtime.inputs.asked_size import find_asked_size, open_at_size
from ...runtime.inputs.messages import MediaPart, Message, list_media, read_messages
from ...runtime.inputs.patches import Grid, VisualInput, normalize_patches
from ...runtime.inputs.request import RequestMaker
from ...runtime.inputs.resize import make_limits
from ...runtime.options import GenerationOptions, make_sampling_rule
from ..checkpoint.open import find_base, open_checkpoint
from .adapted_model import load_model
from .layer_hooks import keep_rows, read_matrix, read_parameter
from .prompts import TransformersPrompts
from .settings import MROPE_RULE, CheckpointSettings, read_checkpoint_settings
from .unpacked_model import is_packed, write_float_folder

# (float32[N, 1176] patches, their grid) of a picture or clip
_Patches = tuple[torch.Tensor, Grid]


class TransformersSide:
    """The reference implementation; see `quant.reference.CheckpointSide`."""

    def __init__(
        self,
        checkpoint: str | Path,
        bundle: Path,
        num_threads: int | None = None,
        *,
        adapters: Sequence[Path] | None = None,
    ) -> None:
        """Load the weights in float32.

        Args:
            checkpoint: a folder or hub id.
            bundle: that it is compared with.
            num_threads: None: as many as torch takes.
            adapters: LoRA adapters, as in `open_checkpoint`; peft merges them.

        Raises:
            ValueError: there is no such checkpoint or bundle.
        """
        _, folder, chosen = find_base(checkpoint, adapters)
        manifest = read_manifest(bundle)
        self._folder = folder
        self._name = f"transformers, {folder.absolute().name}"
        disable_progress_bar()
        if num_threads:
            torch.set_num_threads(num_threads)
        self._model: Any = load_model(folder, chosen, _load_float32).eval()
        self._generation = copy.deepcopy(self._model.generation_config)
        config = self._model.config
        self._prompts = TransformersPrompts(folder, config.image_token_id, config.video_token_id)
        self._processor = _load_processor(folder)
        self._checkpoint = read_checkpoint_settings(
            folder, manifest, self._model, self._processor, self._prompts
        )
        self._manifest = _join_manifest(manifest, self._checkpoint)
        self._maker = _make_maker(self._manifest, self._checkpoint)

    @property
    def name(self) -> str:
        """The checkpoint's folder, and by whom it is run."""
        return self._name

    @property
    def settings(self) -> Settings:
        """As transformers loaded them."""
        return self._checkpoint.settings

    @property
    def decoding(self) -> str:
        """By its generation_config.json."""
        return describe_decoding(self._checkpoint.generation)

    def observe(
        self, example: Example, max_new_tokens: int, *, is_plain: bool = False
    ) -> Observation:
        """Answer by the checkpoint's own settings; see `quant.reference.Side`."""
        request = self._maker.make(example.messages)
        messages = read_messages(example.messages)
        media = list_media(messages)
        patches = [self._cut(*pair) for pair in zip(media, request.visuals, strict=True)]
        is_clip = [visual.kind == "video" for visual in request.visuals]
        ids = self._encode_prompt(messages, request.input_ids, [grid for _, grid in patches])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        inputs |= self._join_patches(patches, is_clip, ids)
        with _MergerTap(self._model) as tap, torch.inference_mode():
            if not max_new_tokens:
                self._encode_only(inputs)
                token_ids, logits = (), np.empty((0, self._manifest.decoder.vocab_size), np.float32)
                is_short = False
            else:
                context = self._manifest.context_length
                limit = limit_answer(ids.shape[1], max_new_tokens, context)
                options = (
                    make_plain_options(limit) if is_plain else make_own_options(example.id, limit)
                )
                token_ids, logits = self._generate(inputs, options)
                is_short = len(token_ids) < limit  # an end token or a stop string came first
        visuals = self._split(tap, patches, is_clip)
        text = self._maker.tokenizer.decode(list(token_ids))
        has_end = bool(self._checkpoint.end_ids.intersection(token_ids[-1:]))
        ended = not is_plain and (is_short or has_end)
        return Observation(visuals, token_ids, text, logits, ended)

    def trace(
        self, prompts: Sequence[Prompt], layers: Sequence[str], on_rows: OnRows, on_step: OnStep
    ) -> None:
        """Tell some rows of every layer; see `quant.layer_rows.LayerTracer`."""
        vision = [layer for layer in layers if layer.startswith("visual.")]
        decoder = [layer for layer in layers if not layer.startswith("visual.")]
        num_visuals = sum(len(prompt.request.visuals) for prompt in prompts)
        number = 0
        for place, prompt in enumerate(prompts):
            on_step(f"{self.name}: {prompt.example}")
            patches = [self._normalize(visual) for visual in prompt.request.visuals]
            for levels, grid in patches:
                with keep_rows(self._model, vision, num_visuals) as kept, torch.inference_mode():
                    self._model.model.visual(levels, grid_thw=torch.tensor([list(grid)]))
                for layer, (x, y) in kept.items():
                    on_rows(layer, number, x, y)
                number += 1
            is_clip = [visual.kind == "video" for visual in prompt.request.visuals]
            token_ids = np.concatenate([prompt.request.input_ids, prompt.answer_ids])
            ids = torch.from_numpy(token_ids)[None]
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            inputs |= self._join_patches(patches, is_clip, ids)
            with keep_rows(self._model, decoder, len(prompts)) as kept, torch.inference_mode():
                self._model(**inputs, use_cache=False)
            for layer, (x, y) in kept.items():
                on_rows(layer, place, x, y)

    def read_vector(self, name: str) -> NDArray[np.float32]:
        """A norm's weight, float32[channels]."""
        return read_parameter(self._model, name)

    def read_matrix(self, layer: str) -> NDArray[np.float32]:
        """A layer's matrix float32[out, in]."""
        return read_matrix(self._model, layer)

    def close(self) -> None:
        """Free the weights."""
        self._model = None
        gc.collect()

    def _encode_prompt(
        self, messages: Sequence[Message], input_ids: NDArray[np.int64], grids: Sequence[Grid]
    ) -> torch.Tensor:
        """int64[1, L], by transformers; where a text spells a special token, ours, as text."""
        if self._prompts.has_special_token(messages):
            return torch.from_numpy(input_ids)[None]
        merged = self._manifest.vision.spatial_merge_size**2
        return torch.tensor(
            [self._prompts.encode(messages, [math.prod(grid) // merged for grid in grids])]
        )

    def _cut(self, part: MediaPart, visual: VisualInput) -> _Patches:
        """A picture by transformers' processor; a clip by ours."""
        if part.kind == "video":
            return self._normalize(visual)
        sizes = {}
        if part.min_pixels is not None or part.max_pixels is not None:
            pixels = self._manifest.pixels
            (smallest, largest), _ = make_limits(pixels, part.min_pixels, part.max_pixels)
            sizes = {"size": {"shortest_edge": smallest, "longest_edge": largest}}
        size_first = find_asked_size(part, self._manifest.vision)
        image: Any = open_at_size(part.sources[0], size_first)
        cut = self._processor(images=[image], return_tensors="pt", **sizes)
        return cut["pixel_values"], Grid(*cut["image_grid_thw"][0].tolist())

    def _normalize(self, visual: VisualInput) -> _Patches:
        pixels = self._manifest.pixels
        levels = normalize_patches(visual.pixel_values, pixels.image_mean, pixels.image_std)
        return torch.from_numpy(levels.reshape(-1, levels.shape[-1])), visual.grid

    def _join_patches(
        self, patches: Sequence[_Patches], is_clip: Sequence[bool], ids: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """What generate() calls the pictures, and the clips, and where they are."""
        if not patches:
            return {}
        tokens = self._manifest.tokens
        kinds = (ids == tokens.image_pad).long() + 2 * (ids == tokens.video_pad).long()
        inputs = {"mm_token_type_ids": kinds}
        for clip, values, grid in (
            (False, "pixel_values", "image_grid_thw"),
            (True, "pixel_values_videos", "video_grid_thw"),
        ):
            chosen = [pair for pair, kind in zip(patches, is_clip, strict=True) if kind == clip]
            if chosen:
                inputs[values] = torch.cat([levels for levels, _ in chosen])
                inputs[grid] = torch.tensor([list(size) for _, size in chosen])
        return inputs

    def _encode_only(self, inputs: dict[str, torch.Tensor]) -> None:
        for values, grid in (
            ("pixel_values", "image_grid_thw"),
            ("pixel_values_videos", "video_grid_thw"),
        ):
            if values in inputs:
                self._model.model.visual(inputs[values], grid_thw=inputs[grid])

    def _generate(
        self, inputs: dict[str, torch.Tensor], options: GenerationOptions
    ) -> tuple[tuple[int, ...], NDArray[np.float32]]:
        tokens = self._checkpoint.tokens
        rule = make_sampling_rule(options, self._checkpoint.generation)
        # All else stands as the checkpoint has it, what bundles don't know included
        config = type(self._generation)() if options.ignore_eos else copy.deepcopy(self._generation)
        config.update(
            max_new_tokens=options.max_new_tokens,
            max_length=None,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_k=None,
            top_p=None,
            repetition_penalty=rule.repetition_penalty,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=tokens.pad,
            eos_token_id=None if options.ignore_eos else list(tokens.eos),
        )
        self._model.generation_config = config
        ids = inputs["input_ids"][0].numpy()
        draws = [_Draws(Sampler(rule.draw, ids))] if rule.do_sample else []
        if config.stop_strings:
            inputs = {**inputs, "tokenizer": AutoTokenizer.from_pretrained(self._folder)}
        output = self._model.generate(**inputs, logits_processor=draws)
        token_ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        return tuple(token_ids), torch.cat(output.logits).float().numpy()

    def _split(
        self, tap: _MergerTap, patches: Sequence[_Patches], is_clip: Sequence[bool]
    ) -> tuple[Visual, ...]:
        """The taps cut up again: transformers takes all pictures first, then all clips."""
        if not patches:
            return ()
        vision = self._manifest.vision
        order = sorted(range(len(patches)), key=lambda i: is_clip[i])
        sizes = [len(patches[i][0]) for i in order]
        before = torch.cat(tap.inputs).split(sizes)
        after = torch.cat(tap.outputs).split([n // vision.spatial_merge_size**2 for n in sizes])
        visuals: dict[int, Visual] = {}
        for place, i in enumerate(order):
            levels, grid = patches[i]
            width, height = grid.w * vision.patch_size, grid.h * vision.patch_size
            visuals[i] = Visual(
                bucket=SeenSize(width, height, grid.t if is_clip[i] else 0).bucket,
                pixel_values=levels.numpy(),
                before_merger=before[place].numpy(),
                image_embeds=after[place].numpy(),
            )
        return tuple(visuals[i] for i in range(len(patches)))


class _Draws(LogitsProcessor):
    """Leaves generate() the one token that our sampler draws from its processed scores."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def __call__(self, input_ids: Any, scores: torch.Tensor) -> torch.Tensor:
        token_id = self._sampler.pick(scores[0].float().numpy())
        only = torch.full_like(scores, -torch.inf)
        only[0, token_id] = 0.0
        return only


class _MergerTap:
    """Keeps what goes into the ViT's merger and what comes out of it."""

    def __init__(self, model: Any) -> None:
        self.inputs: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []
        self._merger = model.model.visual.merger

    def __enter__(self) -> _MergerTap:
        # The merger is the ViT's last module under every version's way to call it.
        def keep(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self.inputs.append(inputs[0].reshape(-1, inputs[0].shape[-1]))
            self.outputs.append(output)

        self._hook = self._merger.register_forward_hook(keep)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def open_reference(checkpoint: str, bundle: Path, num_threads: int | None) -> TransformersSide:
    """The entry point; see `quant.reference.OpenCheckpoint`."""
    return TransformersSide(checkpoint, bundle, num_threads)


def _load_float32(folder: Path) -> Any:
    if is_packed(folder):
        with tempfile.TemporaryDirectory(prefix="vlmedge-") as unpacked:
            write_float_folder(open_checkpoint(folder, ()), Path(unpacked))
            return _load_float32(Path(unpacked))
    return Qwen2VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )


def _join_manifest(manifest: Manifest, checkpoint: CheckpointSettings) -> Manifest:
    """A bundle's manifest with everything that decides answers as the checkpoint has it."""
    return dataclasses.replace(
        manifest,
        vision=checkpoint.vision,
        decoder=checkpoint.decoder,
        tokens=checkpoint.tokens,
        pixels=checkpoint.pixels,
        generation=checkpoint.generation,
        mrope_rule=MROPE_RULE,
        target=None,
        special_tokens=dict(checkpoint.special_tokens),
    )


def _make_maker(manifest: Manifest, checkpoint: CheckpointSettings) -> RequestMaker:
    """Prompts by the checkpoint's own tokenizer and template, laid out as a bundle has them."""
    with tempfile.TemporaryDirectory(prefix="vlmedge-") as folder:
        (Path(folder) / manifest.tokenizer_file).write_bytes(checkpoint.tokenizer)
        path = Path(folder) / manifest.chat_template_file
        path.write_bytes(checkpoint.chat_template.encode())
        return RequestMaker(Path(folder), manifest, None)


def _load_processor(folder: Path) -> Any:
    """The image processor of a folder; of one that names none, the class's own."""
    path = folder / "processor_config.json"
    is_named = path.exists() and "image_processor" in json.loads(path.read_text(encoding="utf-8"))
    if not is_named and not (folder / "preprocessor_config.json").exists():
        return Qwen2VLImageProcessorPil()
    return Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
