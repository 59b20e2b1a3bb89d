"""What must be computed and read, against a count over the checkpoint's own tensors."""

import math

import pytest
from gpu_check.work import count_cache_bytes, count_prefill_flops, count_vision_flops

from vlmedge.export.checkpoint.config import read_model_spec
from vlmedge.export.checkpoint.shapes import expected_shapes

SIZES = ("tiny", "tiny-7b", "2b", "7b")


@pytest.fixture(scope="module")
def read_spec(checkpoint_script, tmp_path_factory):
    def read(name):
        folder = tmp_path_factory.mktemp("spec")
        size = checkpoint_script.SIZES[name]
        checkpoint_script.write_json(
            folder / "config.json", checkpoint_script.make_config(size, "BF16")
        )
        checkpoint_script.write_processor(folder, size.vocab_size)
        return read_model_spec(folder)

    return read


@pytest.fixture(scope="module", params=SIZES)
def spec(request, read_spec):
    return read_spec(request.param)


def count_weights(spec, wanted):
    """Elements of the matrices whose names are wanted."""
    return sum(
        math.prod(shape)
        for name, shape in expected_shapes(spec).items()
        if len(shape) > 1 and wanted(name)
    )


@pytest.mark.parametrize("num_tokens", [1, 7, 512])
def test_a_prompt_multiplies_every_matrix_of_the_decoder_and_the_head_once(spec, num_tokens):
    decoder = spec.decoder
    layers = count_weights(spec, lambda name: ".layers." in name)
    head = decoder.vocab_size * decoder.hidden_size
    # Scores and sums: two products over half of the square, per head and layer.
    attention = 2 * 2 * num_tokens**2 / 2 * decoder.head_dim * decoder.num_heads
    expected = 2 * num_tokens * layers + 2 * head + attention * decoder.num_layers
    assert count_prefill_flops(spec, num_tokens) == expected


@pytest.mark.parametrize("num_patches", [4, 1024, 6084])
def test_a_picture_multiplies_every_matrix_of_the_vit_once_a_patch_or_token(spec, num_patches):
    vision = spec.vision
    blocks = count_weights(spec, lambda name: ".blocks." in name)
    merger = count_weights(spec, lambda name: "merger" in name)
    # A picture's two frames are one: half of the first matrix.
    embed = count_weights(spec, lambda name: "patch_embed" in name) // 2
    attention = 2 * 2 * num_patches**2 * vision.embed_dim * vision.depth
    expected = 2 * num_patches * (blocks + embed) + 2 * num_patches // 4 * merger + attention
    assert count_vision_flops(spec, num_patches) == expected


def test_the_cache_of_the_2b_has_28_kib_a_token(read_spec):
    # keys and values * 28 layers * 2 heads * 128 numbers * 2 bytes
    assert count_cache_bytes(read_spec("2b"), 1) == 28_672
    assert count_cache_bytes(read_spec("2b"), 512) == 512 * 28_672
