"""Memory: exact parts by hand, bounds that grow, and parts of a build as they are cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmedge.export.engines.split_plan import balance
from vlmedge.export.planning.memory import (
    BUILD_COPIES,
    Buffers,
    largest_part,
    list_build_parts,
    list_run_parts,
    measure_decoder,
    measure_vision,
    sum_lines,
)
from vlmedge.export.planning.precision import ModelPrecision
from vlmedge.export.planning.tokens import plan_image, plan_prompt, plan_video
from vlmedge.export.planning.weight_bytes import tensorrt_rules
from vlmedge.export.planning.work import Costing
from vlmedge.runtime.bundle.manifest import PixelBudget, VisionSpec

WIDE = PixelBudget(56 * 56, 16384 * 28 * 28, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def costing(model):
    """The 2B in bfloat16."""
    return Costing(model("2b").shapes, ModelPrecision(), tensorrt_rules("bfloat16"))


def test_scores_of_the_largest_picture_are_the_published_137_gb(costing, model):
    """16 heads * N^2 * 2 bytes for N = 65536, before and behind the softmax."""
    visual = plan_image(3584, 3584, WIDE, model("2b").vision)
    assert visual.num_patches == 65536
    found = measure_vision(costing, visual, 1)
    assert found.scores == 2 * 16 * 65536**2 * 2
    assert found.scores / 2 == pytest.approx(137e9, rel=0.01)
    assert found.total(is_fused=True) == found.activations
    assert found.total(is_fused=False) == found.activations + found.scores


def test_edges_of_a_picture_are_its_pixels_positions_and_embeddings(costing, model):
    visual = plan_image(448, 448, WIDE, model("2b").vision)
    found = measure_vision(costing, visual, 2)
    assert found.edges == 2 * (1024 * (588 + 2 * 8) + 256 * 1536 * 4)
    clip = plan_video(448, 448, 4, WIDE, model("2b").vision)
    assert measure_vision(costing, clip, 1).edges == 1024 * (1176 + 2 * 8) + 256 * 1536 * 4


def test_edges_of_a_decoder_call_are_its_inputs_and_its_new_rows(costing):
    """Embeddings float32, three int64 positions, a mask of bytes, and rows to be copied."""
    found = measure_decoder(costing, 1, 512, 4608, in_place=False)
    assert found.edges == 512 * (1536 * 4 + 3 * 8 + 4608) + 512 * 28_672
    assert measure_decoder(costing, 1, 512, 4096, in_place=True).edges == 512 * (
        1536 * 4 + 3 * 8 + 4096
    )


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 20))
def test_more_of_anything_never_takes_less(costing, model, columns, rows, more):
    vision = model("2b").vision
    small = plan_image(28 * (columns + 3), 28 * (rows + 3), WIDE, vision)
    large = plan_image(28 * (columns + 3 + more), 28 * (rows + 3), WIDE, vision)
    a, b = measure_vision(costing, small, 1), measure_vision(costing, large, 1)
    assert a.activations < b.activations
    assert a.scores < b.scores
    assert a.edges < b.edges
    short = measure_decoder(costing, 1, rows, columns, in_place=True)
    long = measure_decoder(costing, 1, rows + more, columns + more, in_place=True)
    assert short.activations < long.activations
    assert short.edges < long.edges


def list_parts(costing, buffers, **changes):
    vision = VisionSpec(32, 1280, 16, 14, 2, 2)
    prompt = plan_prompt([], 100, 100, 4096, 32768, vision)
    options = {"has_gpu": True, "has_video": False, **changes}
    weights = {"vision": 1000, "decoder": 2000, "lm_head": 300}
    parts = list_run_parts(costing, prompt, weights, 466_747_392, 77, buffers, **options)
    return {part.name: part.nbytes for part in parts}


def test_scratch_is_the_neediest_calls_not_the_sum(costing):
    buffers = [(Buffers(10, 5, 1), True), (Buffers(8, 4, 2), False), (Buffers(3, 3, 3), False)]
    parts = list_parts(costing, buffers)
    assert parts["activations"] == 12
    assert parts["inputs and outputs"] == 6
    assert parts["KV cache"] == 77
    assert (parts["ViT weights"], parts["decoder weights"], parts["lm_head weights"]) == (
        1000,
        2000,
        300,
    )


def test_only_rows_of_the_table_that_are_read_count(costing):
    """A row of 3072 bytes lies in at most two pages."""
    parts = list_parts(costing, [(Buffers(0, 0, 0), True)])
    assert parts["embedding rows in use"] == 4096 * 2 * 4096


def test_clips_need_an_engine_of_their_own_on_a_gpu_only(costing):
    buffers = [(Buffers(0, 0, 0), True)]
    assert list_parts(costing, buffers, has_video=True)["ViT weights again, for clips"] == 1000
    assert not any("clips" in n for n in list_parts(costing, buffers))
    on_cpu = list_parts(costing, buffers, has_video=True, has_gpu=False)
    assert not any("clips" in name or "CUDA" in name for name in on_cpu)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.integers(1, 9))
def test_the_largest_part_is_the_builders_and_as_small_as_can_be(sizes, num_parts):
    if num_parts > len(sizes):
        return
    found = largest_part(sizes, num_parts)
    assert found == max(sum(sizes[i] for i in part) for part in balance(sizes, num_parts))
    cuts = itertools.combinations(range(1, len(sizes)), num_parts - 1)
    tried = [
        max(sum(sizes[a:b]) for a, b in itertools.pairwise((0, *cut, len(sizes)))) for cut in cuts
    ]
    assert found == min(tried)


def test_a_build_takes_copies_of_the_neediest_engine():
    def copies(**options):
        return list_build_parts(50, [10, 10, 10, 10], 30, **options)[0].nbytes

    assert copies(split=1, separate=False) == int(BUILD_COPIES * 70)
    assert copies(split=2, separate=False) == int(BUILD_COPIES * 50)  # the ViT: parts are 30 and 40
    assert copies(split=1, separate=True) == int(BUILD_COPIES * 50)
    assert list_build_parts(5, [10, 10], 30, 2, separate=True)[0].nbytes == int(BUILD_COPIES * 30)


@pytest.mark.parametrize("split", [0, 5])
def test_more_parts_than_layers_are_refused(split):
    with pytest.raises(ValueError, match="the decoder has 4 layers"):
        list_build_parts(50, [10] * 4, 30, split, separate=False)


@given(st.integers(1, 27))
def test_more_parts_never_take_more(split):
    layers = [7 + i % 3 for i in range(28)]
    few = sum_lines(list_build_parts(1, layers, 30, split, separate=False))
    assert few >= sum_lines(list_build_parts(1, layers, 30, split + 1, separate=False))
