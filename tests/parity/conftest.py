"""A bundle and transformers' model on the same random weights, over a matrix of shapes."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from vlmedge.runtime.backends.ort.backend import OrtBackend
from vlmedge.runtime.bundle.embeddings import Embeddings
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.engine import Job
from vlmedge.runtime.inputs.patches import normalize_patches
from vlmedge.runtime.inputs.request import RequestMaker
from vlmedge.runtime.model import Model
from vlmedge.runtime.options import GenerationOptions

# Each shape differs from the 2B in something a graph could have wrong: one layer; the 2B's own head
# sizes 128 and 80; five layers of unequal M-RoPE sections with an untied head; 7 query heads to a
# key head; as many key heads as query heads; three key heads, which no power of two hides; rotary
# frequencies that YaRN stretches from 16 positions to 64, which the requests reach into.
SHAPES = {
    "one layer": {"num_layers": 1, "depth": 1},
    "heads of the 2B": {
        "hidden_size": 256,
        "num_heads": 2,
        "num_kv_heads": 1,
        "mrope_section": (16, 24, 24),
        "vision_dim": 160,
        "vision_heads": 2,
    },
    "deep, untied": {
        "num_layers": 5,
        "depth": 3,
        "num_heads": 2,
        "num_kv_heads": 1,
        "mrope_section": (10, 4, 2),
        "tied": False,
    },
    "7 to 1": "tiny-7b",
    "as many key heads": {"num_kv_heads": 4, "vision_dim": 24, "vision_heads": 1},
    "stretched by YaRN": {
        "num_heads": 2,
        "num_kv_heads": 1,
        "mrope_section": (2, 12, 2),
        "rope_scaling": (
            ("type", "yarn"),
            ("factor", 4.0),
            ("original_max_position_embeddings", 16),
            ("beta_fast", 1.0),
            ("beta_slow", 0.1),
        ),
    },
    "3 key heads": {"hidden_size": 96, "num_heads": 6, "num_kv_heads": 3, "mlp_size": 72},
}


class Recorder(OrtBackend):
    """The runtime's backend, keeping what comes out of its graphs."""

    def clear(self):
        self.image_embeds, self.logits = [], []

    def encode_images(self, graph, pixel_values, position_ids):
        embeds = super().encode_images(graph, pixel_values, position_ids)
        self.image_embeds.extend(embeds)
        return embeds

    def bind_decoder(self, cache, num_tokens, *, row=None):
        call = super().bind_decoder(cache, num_tokens, row=row)
        run = call.run

        def run_and_keep():
            logits = run()
            self.logits.append(logits.copy())
            return logits

        call.run = run_and_keep
        return call


class Pair:
    """Both sides of one shape."""

    def __init__(self, made, load_reference):
        self.checkpoint, self.bundle = made.checkpoint, made.bundle
        self.manifest = read_manifest(made.bundle)
        self.reference = load_reference(made.checkpoint)
        self.backend = Recorder(made.bundle, self.manifest, providers="cpu", num_threads=1)
        self.maker = RequestMaker(made.bundle, self.manifest, None)
        embeddings = Embeddings(made.bundle, self.manifest.embedding)
        self.model = Model(self.manifest, self.maker, embeddings, self.backend)

    def run(self, messages, num_tokens):
        """Our side: image embeddings, logits of each step, tokens."""
        return self.run_request(self.maker.make(messages), num_tokens)

    def run_request(self, request, num_tokens):
        self.backend.clear()
        options = GenerationOptions(max_new_tokens=num_tokens, do_sample=False, ignore_eos=True)
        (answer,) = self.model._engine.start(Job([request], [options], 0.0), None).finish()
        embeds = self.backend.image_embeds or [np.empty((0, self.manifest.decoder.hidden_size))]
        return SimpleNamespace(
            image_embeds=np.concatenate(embeds),
            logits=np.concatenate(self.backend.logits[-num_tokens:]),
            token_ids=list(answer.token_ids),
        )

    def run_reference(self, messages, num_tokens):
        """Their side; the pixels are ours, test_patches.py compares them with their processor's."""
        import torch

        request = self.maker.make(messages)
        tokens = self.manifest.tokens
        ids = torch.from_numpy(request.input_ids)[None]
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == tokens.image_pad) + 2 * (ids == tokens.video_pad),
        }
        for kind, key in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            visuals = [visual for visual in request.visuals if visual.kind == kind]
            if visuals:
                inputs[key] = torch.cat([self.normalize(visual) for visual in visuals])
                inputs[f"{kind}_grid_thw"] = torch.tensor([tuple(v.grid) for v in visuals])
        embeds = [torch.empty(0, self.manifest.decoder.hidden_size)]
        hook = self.reference.model.visual.merger.register_forward_hook(
            lambda _module, _inputs, output: embeds.append(output)
        )
        try:
            with torch.inference_mode():
                output = self.reference.generate(**inputs, max_new_tokens=num_tokens)
        finally:
            hook.remove()
        return SimpleNamespace(
            image_embeds=torch.cat(embeds).numpy(),
            logits=torch.cat(output.logits).numpy(),
            token_ids=output.sequences[0, len(request.input_ids) :].tolist(),
        )

    def normalize(self, visual):
        import torch

        pixels = self.manifest.pixels
        patches = normalize_patches(visual.pixel_values, pixels.image_mean, pixels.image_std)
        return torch.from_numpy(patches.reshape(-1, 1176))


@pytest.fixture(scope="session", params=SHAPES)
def pair(request, make_bundle, checkpoint_script, load_reference):
    shape = SHAPES[request.param]
    if isinstance(shape, dict):
        shape = dataclasses.replace(checkpoint_script.SIZES["tiny"], **shape)
    # float32 weights: bfloat16 ones have zeros behind the 8th bit, where a wrong cast would hide.
    return Pair(make_bundle(shape, seed=11, dtype="F32"), load_reference)
