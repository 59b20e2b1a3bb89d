"""The graphs against transformers with the same weights: float ones exactly, packed ones unpacked.

Tolerances: 1e-4 for float32 (measured 4e-6; the sums run in another order). For packed weights the
reference gets the weights as they are after packing; what is left is the rounding of activations to
8 bits: measured at most 2.8 % of the output's norm, allowed 5 %.
"""

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import Qwen2VLForConditionalGeneration
from transformers.vision_utils import get_vision_position_ids

from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.graphs.options import ExportOptions
from vlmedge.quant.rounding.weight_only import pack_rows, unpack_rows

FLOAT32_TOLERANCE = 1e-4
INT8_ACTIVATIONS_REL_L2 = 0.05
CAPACITY = 40


@pytest.fixture(scope="module", params=["tiny", "tiny-7b"])
def checkpoint(request, read_only_checkpoint):
    return read_only_checkpoint(request.param)


def load_reference(checkpoint):
    return Qwen2VLForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def reference(checkpoint):
    return load_reference(checkpoint)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny matrices: threads would only wait for each other, and long where others work too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_session(folder, graph):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = str(folder / f"{graph}.onnx")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_vision(folder, manifest, levels, grid):
    """Embeddings of our graph, images uint8[I, N, 588] or frame pairs uint8[I, N, 1176]."""
    graph = "vision" if levels.shape[2] == 588 else "vision_video"
    ids = get_vision_position_ids(torch.tensor([grid]), 2).numpy().astype(np.int64)
    ids = np.broadcast_to(ids, (len(levels), *ids.shape))
    inputs = {"pixel_values": levels, "position_ids": np.ascontiguousarray(ids)}
    return make_session(folder, graph).run(None, inputs)[0]


def run_reference_vision(model, manifest, levels, grid):
    """Embeddings of transformers, from normalized pixels."""
    pixels = manifest.pixels
    count, num_patches, size = levels.shape
    frames = size // 588
    shaped = levels.reshape(count, num_patches, 3, frames, 196).astype(np.float64) / 255
    mean, std = (np.reshape(v, (3, 1, 1)) for v in (pixels.image_mean, pixels.image_std))
    normalized = np.repeat((shaped - mean) / std, 2 // frames, axis=3)
    values = torch.tensor(normalized.reshape(-1, 1176), dtype=torch.float32)
    with torch.no_grad():
        output = model.model.visual(values, grid_thw=torch.tensor([grid] * count))
    return output.pooler_output.numpy().reshape(count, num_patches // 4, -1)


class Decoder:
    """Our decoder over one shared cache."""

    def __init__(self, folder, manifest, batch):
        self.session = make_session(folder, "decoder")
        spec = manifest.decoder
        shape = (batch, spec.num_kv_heads, CAPACITY, spec.head_dim)
        self.cache = {
            f"{i}.{part}": onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
            for i in range(spec.num_layers)
            for part in ("key", "value")
        }

    def __call__(self, embeds, position_ids, seqlens_k, logit_index):
        seqlens_k = np.asarray(seqlens_k, np.int32)
        binding = self.session.io_binding()
        for name, value in {
            "inputs_embeds": embeds,
            "position_ids": position_ids,
            "seqlens_k": seqlens_k,
            "total_sequence_length": np.array(seqlens_k.max() + 1, np.int32),
            "logit_index": np.asarray(logit_index, np.int64),
        }.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        binding.bind_output("logits")
        for name, value in self.cache.items():
            binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            binding.bind_ortvalue_output(f"present.{name}", value)
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[0].numpy()


def make_prompts(model, lengths, extra, seed=0):
    """Random embeddings of the table and random rising M-RoPE positions, unequal in t, h and w."""
    random = np.random.default_rng(seed)
    size = max(lengths) + extra
    ids = torch.tensor(random.integers(0, 256, (len(lengths), size)))
    embeds = model.model.language_model.embed_tokens(ids).detach()
    position_ids = np.sort(random.integers(0, 50, (3, len(lengths), size)), axis=2)
    return embeds, position_ids.astype(np.int64)


def run_reference_decoder(model, embeds, position_ids, row, length):
    """Logits of all positions of one row, float32[length, V]."""
    with torch.no_grad():
        hidden = model.model.language_model(
            inputs_embeds=embeds[row : row + 1, :length],
            position_ids=torch.tensor(position_ids[:, row : row + 1, :length]),
        ).last_hidden_state
        return model.lm_head(hidden)[0].numpy()


def pack_and_unpack(model, options):
    """Give the reference the weights that a packed bundle holds."""
    bits = {"int8": 8, "int4": 4}

    def replace(linear, precision):
        rows = linear.weight.detach().numpy()
        packed, scales = pack_rows(rows, bits[precision.format], precision.block_size)
        weight = unpack_rows(packed, scales, bits[precision.format], rows.shape[1])
        linear.weight = torch.nn.Parameter(torch.tensor(weight))

    for part, precision in (
        (model.model.visual, options.vision),
        (model.model.language_model, options.decoder),
    ):
        for module in part.modules():
            if isinstance(module, torch.nn.Linear):
                replace(module, precision)
    replace(model.lm_head, options.lm_head)


def rel_l2(got, expected):
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "fp32"
    return folder, export_checkpoint(checkpoint, folder)


@pytest.mark.parametrize("grid", [(1, 2, 2), (1, 4, 6), (1, 20, 2), (1, 12, 10)])
@pytest.mark.parametrize("size", [588, 1176])
@pytest.mark.parametrize("count", [1, 3])
def test_image_embeddings_equal_transformers(exported, reference, grid, size, count):
    folder, manifest = exported
    num_patches = grid[1] * grid[2]
    random = np.random.default_rng(num_patches)
    levels = random.integers(0, 256, (count, num_patches, size), dtype=np.uint8)
    got = run_vision(folder, manifest, levels, grid)
    expected = run_reference_vision(reference, manifest, levels, grid)
    np.testing.assert_allclose(got, expected, rtol=0, atol=FLOAT32_TOLERANCE)


def test_logits_of_a_ragged_batch_equal_transformers_in_prefill_and_decode(exported, reference):
    folder, manifest = exported
    lengths, steps = np.array([20, 7, 1]), 4
    embeds, position_ids = make_prompts(reference, lengths, steps)
    expected = [
        run_reference_decoder(reference, embeds, position_ids, row, length + steps)
        for row, length in enumerate(lengths)
    ]
    decoder = Decoder(folder, manifest, len(lengths))
    longest = lengths.max()
    logits = decoder(
        embeds[:, :longest].numpy(), position_ids[:, :, :longest], lengths - 1, lengths - 1
    )
    rows = range(len(lengths))
    for step in range(steps + 1):
        needed = np.stack([expected[row][lengths[row] + step - 1] for row in rows])
        np.testing.assert_allclose(logits, needed, rtol=0, atol=FLOAT32_TOLERANCE)
        if step < steps:
            at = lengths + step
            one = np.stack([embeds[row, at[row]].numpy() for row in rows])[:, None]
            ids = np.stack([position_ids[:, row, at[row]] for row in rows], axis=1)[:, :, None]
            logits = decoder(one, ids, at, np.zeros(len(lengths)))


def test_a_prompt_in_chunks_gives_the_logits_of_the_whole(exported, reference):
    folder, manifest = exported
    embeds, position_ids = make_prompts(reference, [24], 0)
    expected = run_reference_decoder(reference, embeds, position_ids, 0, 24)
    decoder, start = Decoder(folder, manifest, 1), 0
    for size in (9, 1, 14):
        stop = start + size
        part = embeds[:, start:stop].numpy()
        logits = decoder(part, position_ids[:, :, start:stop], [stop - 1], [size - 1])
        np.testing.assert_allclose(logits[0], expected[stop - 1], rtol=0, atol=FLOAT32_TOLERANCE)
        start = stop


def test_logits_of_any_position_may_be_asked_for(exported, reference):
    folder, manifest = exported
    embeds, position_ids = make_prompts(reference, [10], 0)
    expected = run_reference_decoder(reference, embeds, position_ids, 0, 10)
    for index in (0, 4, 9):
        logits = Decoder(folder, manifest, 1)(embeds.numpy(), position_ids, [9], [index])
        np.testing.assert_allclose(logits[0], expected[index], rtol=0, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize(
    "options",
    [
        ExportOptions("int8"),
        ExportOptions("int8", block_size=32),
        ExportOptions("int4", "int4", "int4"),
        ExportOptions("int4", "int4", "int4", block_size=16),
        ExportOptions("int4", block_size=128),  # longer than any row of these models
    ],
    ids=lambda o: f"{o.weights}-{o.block_size}",
)
def test_packed_graphs_compute_what_transformers_does_with_the_unpacked_weights(
    checkpoint, tmp_path, options
):
    manifest = export_checkpoint(checkpoint, tmp_path / "bundle", options)
    model = load_reference(checkpoint)
    embeds, position_ids = make_prompts(model, [16], 0)  # before the tied table is packed too
    pack_and_unpack(model, options)
    levels = np.random.default_rng(0).integers(0, 256, (1, 48, 588), dtype=np.uint8)
    got = run_vision(tmp_path / "bundle", manifest, levels, (1, 6, 8))
    expected = run_reference_vision(model, manifest, levels, (1, 6, 8))
    assert rel_l2(got, expected) <= INT8_ACTIVATIONS_REL_L2
    logits = Decoder(tmp_path / "bundle", manifest, 1)(embeds.numpy(), position_ids, [15], [15])
    expected = run_reference_decoder(model, embeds, position_ids, 0, 16)[-1:]
    assert rel_l2(logits, expected) <= INT8_ACTIVATIONS_REL_L2


def test_float16_weights_compute_what_transformers_does_with_the_rounded_ones(checkpoint, tmp_path):
    manifest = export_checkpoint(checkpoint, tmp_path / "bundle", ExportOptions("fp16"))
    model = load_reference(checkpoint)
    embeds, position_ids = make_prompts(model, [16], 0)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(module.weight.half().float())
    logits = Decoder(tmp_path / "bundle", manifest, 1)(embeds.numpy(), position_ids, [15], [15])
    expected = run_reference_decoder(model, embeds, position_ids, 0, 16)[-1:]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=FLOAT32_TOLERANCE)
