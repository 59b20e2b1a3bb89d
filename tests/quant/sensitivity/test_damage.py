"""Sums of damage: what they measure, how they add up and are shared out."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from vlmedge.quant.graph.feeds import make_prompts
from vlmedge.quant.sensitivity.damage import (
    ALL,
    TEXT,
    Buckets,
    Damage,
    add_up,
    damages_from_json,
    damages_to_json,
    drop_embeds,
    measure_embeds,
    measure_logits,
    share_out,
    subtract,
)
from vlmedge.runtime.bundle.manifest_file import read_manifest

sums = st.floats(0, 1e6)
damages = st.builds(Damage, sums, sums, sums, sums, sums, st.integers(0, 1000))


def test_embeddings_are_measured_by_relative_l2():
    needed = np.array([[3.0, 0.0], [0.0, 4.0]], np.float32)
    damage = measure_embeds(needed + np.float32(0.5), needed)
    assert damage.embeds_rel_l2 == pytest.approx(1.0 / 5.0)
    assert damage.embeds_sqnr_db == pytest.approx(20 * np.log10(5))
    assert damage.kl_mean is None
    assert damage.logits_rel_l2 is None


def test_logits_are_measured_by_kl_of_the_float_model_s_distributions():
    generator = np.random.default_rng(0)
    needed = generator.standard_normal((3, 7)).astype(np.float32) * 3
    got = needed + generator.standard_normal((3, 7)).astype(np.float32)
    damage = measure_logits(got, needed)
    probabilities = [np.exp(rows) / np.exp(rows).sum(1, keepdims=True) for rows in (needed, got)]
    assert damage.kl == pytest.approx(entropy(*probabilities, axis=1).sum(), rel=1e-5)
    assert damage.kl_mean == pytest.approx(damage.kl / 3)
    assert damage.num_positions == 3


def test_pictures_of_all_sizes_are_one_sum():
    found = [("a", Damage(1.0, 10.0)), ("b", Damage(3.0, 5.0)), ("a", Damage(2.0, 1.0))]
    assert add_up(found) == {
        "a": Damage(3.0, 11.0),
        "b": Damage(3.0, 5.0),
        ALL: Damage(6.0, 16.0),
    }


@given(damages, st.lists(sums, min_size=1, max_size=5))
def test_shares_make_up_the_whole(whole, errors):
    shared = share_out({"x": whole}, {str(i): {"x": e} for i, e in enumerate(errors)})
    found = [one["x"] for one in shared.values()]
    for field in ("embeds_error", "logits_error", "kl"):
        total = sum(getattr(damage, field) for damage in found)
        wanted = getattr(whole, field) if sum(errors) else 0.0
        assert total == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    assert {damage.num_positions for damage in found} == {whole.num_positions}


def test_a_layer_s_share_is_that_of_its_error_power_in_each_size():
    whole = {"a": Damage(embeds_error=8.0), "b": Damage(embeds_error=1.0)}
    shared = share_out(whole, {"l": {"a": 3.0, "b": 0.0}, "m": {"a": 1.0, "b": 2.0}})
    assert shared["l"] == {"a": Damage(embeds_error=6.0), "b": Damage()}
    assert shared["m"] == {"a": Damage(embeds_error=2.0), "b": Damage(embeds_error=1.0)}


@given(damages, damages)
def test_what_is_left_is_never_below_nothing(whole, own):
    left = subtract({"x": whole, "y": whole}, {"x": own})
    assert left["y"] == whole
    for field in ("embeds_error", "logits_error", "kl"):
        wanted = max(getattr(whole, field) - getattr(own, field), 0)
        assert getattr(left["x"], field) == wanted
    assert left["x"].embeds_signal == whole.embeds_signal


@given(st.dictionaries(st.sampled_from(["a", "b", ALL]), damages))
def test_json_gives_back_every_bit(found):
    assert damages_from_json(json.loads(json.dumps(damages_to_json(found)))) == found


def test_the_decoder_has_no_part_in_embeddings():
    whole = {"a": Damage(1.0, 2.0, 3.0, 4.0, 5.0, 6)}
    assert drop_embeds(whole) == {"a": Damage(0.0, 0.0, 3.0, 4.0, 5.0, 6)}
    assert drop_embeds(whole)["a"].embeds_rel_l2 is None


def test_sizes_are_parts_of_the_budget_and_clips_by_themselves(make_bundle, questions):
    bundle = make_bundle("tiny").bundle
    manifest = read_manifest(bundle)
    buckets = Buckets(manifest)
    names = []
    for prompt in make_prompts(bundle, manifest, questions.examples):
        for visual in prompt.request.visuals:
            name = buckets.name(visual)
            assert name.startswith("clip ") == (visual.kind == "video")
            low, high = map(int, name.removeprefix("clip ").removesuffix(" tokens").split("-"))
            assert low <= visual.num_tokens // visual.grid.t <= high
            names.append(name)
        assert buckets.name_prompt(prompt) == buckets.name(prompt.request.visuals[0])
    mixed = [TEXT, *names[::-1], ALL]
    ordered = buckets.sort(mixed)
    assert set(ordered) == set(mixed)
    assert ordered[-2:] == [TEXT, ALL]
    assert [name.startswith("clip ") for name in ordered[:-2]] == sorted(
        name.startswith("clip ") for name in ordered[:-2]
    )
