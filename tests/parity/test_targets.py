"""Graphs written for TensorRT, run unchanged in ONNX Runtime, against transformers.

Tolerance of float32 5e-5: embeddings, logits, keys and values are of the order of 1, at most 5;
float32 sums in another order differ by 1e-6 to 1e-5 (measured: at most 1e-5). One position of one
token that is wrong by 1 makes 7e-3 and more.

Of float16 0.02: a rounding is 5e-4 of a value, some forty of them follow each other on the way to a
logit of at most 5. Measured: at most 7e-3. What a norm or the rotation in float16 would do is
smaller than what float16 itself does, so this finds wrong terms only; the graphs' types are tested
beside the rules that choose them.
"""

import copy
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from transformers.vision_utils import get_vision_position_ids

from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.options import LoweringOptions
from vlmedge.runtime.backends.ort.exact_products import make_entries
from vlmedge.runtime.bundle.embeddings import Embeddings
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.inputs.request import RequestMaker
from vlmedge.runtime.model import Model

CONTEXT = 224
# One row of the table for each form of graph; the others give the same bytes, which is tested too.
TARGETS = {"jetpack-6.2": None, "jetpack-7.2": CONTEXT}
TWINS = {"jetpack-7.0": "jetpack-6.2", "tensorrt-11": "jetpack-7.2", "tensorrt-rtx": "jetpack-7.2"}
TOLERANCES = {"fp32": 5e-5, "fp16": 0.02}
SAMPLES = Path(__file__).parents[2] / "samples"
QUESTIONS = json.loads((SAMPLES / "pictures" / "questions.json").read_text())
NUM_TOKENS = 6


def assert_close(got, needed, dtype="fp32"):
    assert np.shape(got) == np.shape(needed)
    np.testing.assert_allclose(got, needed, rtol=0, atol=TOLERANCES[dtype])


def make_picture(seed, width, height):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def ask(*parts):
    """One user turn: arrays are pictures, lists of them clips, strings text."""
    kinds = {str: "text", list: "video", np.ndarray: "image"}
    content = [{"type": kinds[type(part)], kinds[type(part)]: part} for part in parts]
    return [{"role": "user", "content": content}]


WIDE, TALL = make_picture(1, 230, 60), make_picture(2, 58, 170)
REQUESTS = {
    "text": ask("What is the total?"),
    "two sizes": ask(WIDE, "above", TALL, "Compare."),
    "three equal": ask(TALL, make_picture(3, 58, 170), make_picture(4, 58, 170), "Odd one?"),
    "clip and picture": ask("First", [make_picture(i, 120, 90) for i in range(4)], WIDE, "and?"),
}


# Of the shapes of `pair` those that attention, heads and cache differ in.
over_shapes = pytest.mark.parametrize(
    "pair",
    ["heads of the 2B", "deep, untied", "7 to 1", "3 key heads", "stretched by YaRN"],
    indirect=True,
    scope="session",
)


@pytest.fixture(scope="session")
def lower(tmp_path_factory):
    """(source, target, dtype) -> a bundle; each is made once."""
    made = {}

    def make(source, target, dtype="fp32"):
        key = (source, target, dtype)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("targets") / "bundle"
            context = TARGETS[TWINS.get(target, target)]
            export_for_target(source, made[key], LoweringOptions(target, dtype, context))
        return made[key]

    return make


class Graphs:
    """Sessions of one bundle and transformers' model."""

    def __init__(self, bundle, reference):
        self.manifest, self.reference = read_manifest(bundle), reference
        self._folder, self._sessions = bundle, {}

    def run(self, name, feed):
        if name not in self._sessions:
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            path = self._folder / self.manifest.graphs[name].file
            for key, value in make_entries(path, keep_qdq=False).items():
                options.add_session_config_entry(key, value)
            self._sessions[name] = ort.InferenceSession(path, options, ["CPUExecutionProvider"])
        outputs = [spec.name for spec in self.manifest.graphs[name].outputs]
        return dict(zip(outputs, self._sessions[name].run(outputs, feed), strict=True))


@pytest.fixture(scope="session", params=TARGETS)
def target(request):
    return request.param


@pytest.fixture(scope="session")
def graphs(pair, target, lower):
    return Graphs(lower(pair.bundle, target), pair.reference)


@pytest.fixture(scope="session")
def half_graphs(pair, target, lower):
    return Graphs(lower(pair.bundle, target, "fp16"), pair.reference)


# --- the ViT


def run_vision(graphs, levels, grid):
    ids = get_vision_position_ids(torch.tensor([grid]), 2).numpy().astype(np.int64)
    ids = np.tile(ids, (len(levels), 1, 1))
    name = "vision" if levels.shape[2] == 588 else "vision_video"
    return graphs.run(name, {"pixel_values": levels, "position_ids": ids})["image_embeds"]


def run_reference_vision(graphs, levels, grid):
    """Frame pairs of levels -> normalized by definition, a picture twice -> its embeddings."""
    pixels = graphs.manifest.pixels
    count, num_patches, size = levels.shape
    frames = size // 588
    shaped = levels.reshape(count, num_patches, 3, frames, 196) / 255
    mean, std = (np.reshape(v, (3, 1, 1)) for v in (pixels.image_mean, pixels.image_std))
    normalized = np.repeat((shaped - mean) / std, 2 // frames, axis=3)
    values = torch.tensor(normalized.reshape(-1, 1176), dtype=torch.float32)
    with torch.no_grad():
        output = graphs.reference.model.visual(values, grid_thw=torch.tensor([grid] * count))
    return output.pooler_output.numpy().reshape(count, num_patches // 4, -1)


def draw_levels(grid, count, size):
    num_patches = grid[1] * grid[2]
    return np.random.default_rng(num_patches).integers(
        0, 256, (count, num_patches, size), dtype=np.uint8
    )


@over_shapes
@pytest.mark.parametrize("size", [588, 1176], ids=["picture", "frame pair"])
@pytest.mark.parametrize("grid", [(1, 2, 2), (1, 4, 10), (1, 12, 6)], ids=str)
@pytest.mark.parametrize("count", [1, 3])
def test_image_embeddings_are_those_of_transformers(graphs, grid, count, size):
    levels = draw_levels(grid, count, size)
    assert_close(run_vision(graphs, levels, grid), run_reference_vision(graphs, levels, grid))


@over_shapes
def test_float16_embeddings_are_those_of_transformers(half_graphs):
    for size in (588, 1176):
        levels = draw_levels((1, 4, 10), 2, size)
        got = run_vision(half_graphs, levels, (1, 4, 10))
        assert got.dtype == np.float32
        assert_close(got, run_reference_vision(half_graphs, levels, (1, 4, 10)), "fp16")


# --- the decoder


class Decoder:
    """The decoder graph, with a host that is as plain as can be."""

    def __init__(self, graphs, batch, capacity=40):
        self.graphs, target = graphs, graphs.manifest.target
        self.appends, capacity = target.cache == "append", target.capacity or capacity
        self.lengths = np.zeros(batch, np.int64)
        self.past = {
            spec.name: np.zeros(
                [batch, spec.shape[1], capacity, spec.shape[3]], np.dtype(spec.dtype)
            )
            for spec in graphs.manifest.graphs["decoder"].inputs
            if spec.name.startswith("past")
        }
        self.capacity = capacity

    def __call__(self, embeds, position_ids, num_new):
        """Logits behind each row's last new token; num_new: how many of the tokens are real."""
        batch, size = embeds.shape[:2]
        width = self.capacity + (size if self.appends else 0)
        mask = np.zeros((batch, 1, size, width), bool)
        for row, start in enumerate(self.lengths):
            for token in range(size):
                mask[row, 0, token, :start] = True
                first = self.capacity if self.appends else start
                mask[row, 0, token, first : first + token + 1] = True
        feed = {
            "inputs_embeds": np.ascontiguousarray(embeds, np.float32),
            "position_ids": np.ascontiguousarray(position_ids),
            "logit_index": np.asarray(num_new) - 1,
            "attention_mask": mask,
            **self.past,
        }
        if not self.appends:
            feed["write_indices"] = self.lengths
        got = self.graphs.run("decoder", feed)
        for name in self.past:
            present = got[name.replace("past_key_values", "present")]
            if not self.appends:
                self.past[name] = present
                continue
            for row, (start, count) in enumerate(zip(self.lengths, num_new, strict=True)):
                self.past[name][row, :, start : start + count] = present[row, :, :count]
        self.lengths = self.lengths + num_new
        return got["logits"]


class ReferenceDecoder:
    """Each row alone and from its beginning, through transformers."""

    def __init__(self, graphs, embeds, position_ids):
        self.rows = []
        model = graphs.reference
        for row in range(len(embeds)):
            with torch.no_grad():
                output = model.model.language_model(
                    inputs_embeds=torch.tensor(embeds[row : row + 1]),
                    position_ids=torch.tensor(position_ids[:, row : row + 1]),
                    use_cache=True,
                )
                logits = model.lm_head(output.last_hidden_state)[0].numpy()
            self.rows.append((logits, output.past_key_values.layers))

    def logits(self, lengths):
        return np.stack([self.rows[row][0][length - 1] for row, length in enumerate(lengths)])

    def check_cache(self, decoder, dtype="fp32"):
        """Keys are cached behind the rotation."""
        for name, buffer in decoder.past.items():
            _, layer, part = name.split(".")
            for row, length in enumerate(decoder.lengths):
                cached = getattr(self.rows[row][1][int(layer)], f"{part}s")[0, :, :length]
                assert_close(buffer[row, :, :length], cached.numpy(), dtype)


def draw_prompts(graphs, batch, num_tokens, seed=0):
    """Embeddings of the table's size, M-RoPE positions unequal in t, h and w."""
    rng = np.random.default_rng(seed)
    table = graphs.reference.model.language_model.embed_tokens.weight.detach().numpy()
    embeds = table[rng.integers(0, 256, (batch, num_tokens))]
    return embeds, np.sort(rng.integers(0, 50, (3, batch, num_tokens)), axis=2)


def check_ragged_batch(graphs, dtype):
    lengths, steps = np.array([17, 6, 1]), 3
    embeds, ids = draw_prompts(graphs, len(lengths), lengths.max() + steps)
    reference = ReferenceDecoder(graphs, embeds, ids)
    decoder = Decoder(graphs, len(lengths))
    longest = lengths.max()  # the shorter prompts are padded with whatever comes behind them
    logits = decoder(embeds[:, :longest], ids[:, :, :longest], lengths)
    for _ in range(steps):
        assert logits.dtype == np.float32
        assert_close(logits, reference.logits(decoder.lengths), dtype)
        reference.check_cache(decoder, dtype)
        rows = np.arange(len(lengths))
        at = decoder.lengths
        logits = decoder(embeds[rows, at][:, None], ids[:, rows, at][:, :, None], [1, 1, 1])
    assert_close(logits, reference.logits(lengths + steps), dtype)
    reference.check_cache(decoder, dtype)


@over_shapes
def test_logits_and_cache_of_a_ragged_batch_are_those_of_transformers(graphs):
    check_ragged_batch(graphs, "fp32")


@over_shapes
def test_float16_logits_and_cache_are_those_of_transformers(half_graphs):
    check_ragged_batch(half_graphs, "fp16")


@over_shapes
def test_a_prompt_in_chunks_gives_the_logits_and_the_cache_of_the_whole(graphs):
    embeds, ids = draw_prompts(graphs, 2, 21, seed=1)
    reference, decoder = ReferenceDecoder(graphs, embeds, ids), Decoder(graphs, 2)
    for size in (8, 1, 12):
        at = slice(decoder.lengths[0], decoder.lengths[0] + size)
        logits = decoder(embeds[:, at], ids[:, :, at], [size, size])
        assert_close(logits, reference.logits(decoder.lengths))
        reference.check_cache(decoder)


@over_shapes
def test_a_first_chunk_may_bind_a_cache_of_one_slot_where_the_size_is_free(pair, lower):
    graphs = Graphs(lower(pair.bundle, "jetpack-6.2"), pair.reference)
    embeds, ids = draw_prompts(graphs, 1, 11, seed=2)
    feed = {
        "inputs_embeds": embeds,
        "position_ids": ids,
        "logit_index": np.array([10]),
        "attention_mask": np.hstack([np.zeros((11, 1), bool), np.tri(11, dtype=bool)])[None, None],
        **{name: past + 7 for name, past in Decoder(graphs, 1, capacity=1).past.items()},
    }
    logits = graphs.run("decoder", feed)["logits"]
    assert_close(logits, ReferenceDecoder(graphs, embeds, ids).logits([11]))


# --- whole answers


@pytest.fixture(scope="session")
def reference_answers(pair):
    """What transformers answers, with its logits; each is asked once."""
    return {name: pair.run_reference(request, NUM_TOKENS) for name, request in REQUESTS.items()}


def retarget(pair, bundle):
    """The same pair with another bundle of the same weights on our side."""
    other = copy.copy(pair)
    other.bundle, other.manifest = bundle, read_manifest(bundle)
    other.backend = type(pair.backend)(bundle, other.manifest, providers="cpu", num_threads=1)
    other.maker = RequestMaker(bundle, other.manifest, None)
    embeddings = Embeddings(bundle, other.manifest.embedding)
    other.model = Model(other.manifest, other.maker, embeddings, other.backend)
    return other


@pytest.fixture(scope="session")
def targeted(pair, target, lower):
    return retarget(pair, lower(pair.bundle, target))


@over_shapes
@pytest.mark.parametrize("name", REQUESTS)
def test_answers_about_pictures_and_clips_are_those_of_transformers(
    targeted, reference_answers, name
):
    ours, theirs = targeted.run(REQUESTS[name], NUM_TOKENS), reference_answers[name]
    assert_close(ours.logits, theirs.logits)
    assert ours.token_ids == theirs.token_ids


@over_shapes
def test_the_comparison_can_fail(graphs):
    levels = draw_levels((1, 4, 10), 1, 588)
    needed = run_reference_vision(graphs, levels, (1, 4, 10))
    levels[0, 3] ^= 0x80  # one patch
    with pytest.raises(AssertionError):
        assert_close(run_vision(graphs, levels, (1, 4, 10)), needed)
    embeds, ids = draw_prompts(graphs, 1, 9)
    reference, decoder = ReferenceDecoder(graphs, embeds, ids), Decoder(graphs, 1)
    ids[1, 0, 2] += 1  # one row of one token's position
    logits = decoder(embeds, ids, [9])
    with pytest.raises(AssertionError):
        assert_close(logits, reference.logits([9]))
    with pytest.raises(AssertionError):
        reference.check_cache(decoder)


# --- the sample, and the rest of the table


@pytest.fixture(scope="session")
def reader(tmp_path_factory):
    bundle = tmp_path_factory.mktemp("sample") / "reader"
    export_checkpoint(SAMPLES / "reader", bundle)
    return bundle


def answer_questions(bundle):
    with Model.load(bundle, providers="cpu", num_threads=1) as model:
        for entry in QUESTIONS:
            frames = [SAMPLES / "pictures" / name for name in entry.get("frames", [])]
            pictures = [] if frames else [SAMPLES / "pictures" / entry["picture"]]
            yield model.answer(entry["question"], pictures, videos=[frames] if frames else [])


@pytest.fixture(scope="session")
def plain_answers(reader):
    return list(answer_questions(reader))


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_the_sample_answers_as_in_the_plain_flavor(reader, plain_answers, lower, target, dtype):
    answers = list(answer_questions(lower(reader, target, dtype)))
    assert [a.token_ids for a in answers] == [a.token_ids for a in plain_answers]
    assert [a.text for a in answers] == [entry["answer"] for entry in QUESTIONS]


@pytest.mark.parametrize("name", TWINS)
def test_rows_that_differ_in_nothing_give_the_same_graphs(make_bundle, lower, name):
    source = make_bundle("tiny").bundle
    for dtype in ("fp32", "fp16", "bf16"):
        one, two = (lower(source, target, dtype) for target in (name, TWINS[name]))
        files = {path.name for path in one.iterdir()}
        assert files == {path.name for path in two.iterdir()}
        for file in files - {"manifest.json"}:
            assert (one / file).read_bytes() == (two / file).read_bytes(), file
