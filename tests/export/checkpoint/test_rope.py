"""Rotary settings against transformers: frequencies and factor. Graphs with them: tests/parity.

Frequencies agree to 1 part in 10^6: the same float32 operations, but for powers, where NumPy's and
torch's differ in the last bit.
"""

import json

import numpy as np
import pytest
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding

from vlmedge.export.checkpoint.config import read_model_spec

SECTION = [2, 3, 3]  # of the tiny model, whose heads have 16 channels
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
SCALED = {
    "linear": {"type": "linear", "factor": 2.5},
    "yarn": YARN,
    "yarn, new spelling": {"rope_type": "yarn"} | {k: v for k, v in YARN.items() if k != "type"},
    "yarn over the config's own context": {"type": "yarn", "factor": 2.0},
    "yarn by the ratio of contexts": YARN | {"factor": None},
    "yarn, attention factor": YARN | {"attention_factor": 0.75},
    "yarn, mscale": YARN | {"mscale": 0.7, "mscale_all_dim": 1.4},
    "yarn, one mscale": YARN | {"mscale": 0.7},
    "yarn, betas": YARN | {"beta_fast": 8, "beta_slow": 2.5},
    "yarn, betas of nothing": YARN | {"beta_fast": None, "beta_slow": 0},
    "yarn, not truncated": YARN | {"truncate": False},
    "yarn that shrinks": YARN | {"factor": 0.5},
    "llama3": {"type": "llama3", "factor": 8.0} | LLAMA3,
}


@pytest.fixture
def change(checkpoint):
    """Change config.json; its text part may be nested as transformers 5 saves it."""

    def apply(changes, *, nested=False):
        path = checkpoint / "config.json"
        config = json.loads(path.read_text())
        if nested:
            vision = config.pop("vision_config")
            outer = {"model_type": "qwen2_vl", "vision_config": vision}
            config = outer | {"text_config": config | {"model_type": "qwen2_vl_text"}}
            config["text_config"].update(changes)
        else:
            config.update(changes)
        path.write_text(json.dumps(config))
        return checkpoint

    return apply


def load_rotary(checkpoint):
    """transformers' own frequencies and factor."""
    text = Qwen2VLConfig.from_pretrained(checkpoint).text_config
    rotary = Qwen2VLRotaryEmbedding(text)
    return rotary.inv_freq.numpy(), rotary.attention_scaling


def assert_same_rotary(checkpoint):
    spec = read_model_spec(checkpoint)
    inv_freq, factor = load_rotary(checkpoint)
    np.testing.assert_allclose(
        spec.rope.inverse_frequencies(spec.decoder.head_dim), inv_freq, rtol=1e-6
    )
    assert spec.rope.attention_factor == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("scaling", SCALED.values(), ids=SCALED)
def test_scaled_frequencies_and_factor_are_transformers(change, scaling, nested):
    changes = {"rope_scaling": scaling | {"mrope_section": SECTION}}
    assert_same_rotary(change(changes, nested=nested))


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 500.0},
        {"rope_parameters": {"rope_theta": 700.0, "mrope_section": SECTION}, "rope_scaling": None},
        # Both are there: the older name counts
        {"rope_parameters": {"rope_theta": 700.0, "mrope_section": SECTION}},
        {
            "rope_scaling": YARN | {"mrope_section": SECTION},
            "original_max_position_embeddings": 32,  # counts where it is nested
        },
    ],
    ids=["theta", "new name", "both names", "original context beside"],
)
def test_of_several_places_the_one_that_transformers_takes_counts(change, changes, nested):
    assert_same_rotary(change(changes, nested=nested))


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_the_context_reaches_as_far_as_yarn_stretches_it(change, nested):
    checkpoint = change({"rope_scaling": YARN | {"mrope_section": SECTION}}, nested=nested)
    trained = read_model_spec(checkpoint).decoder.max_position_embeddings
    longer = YARN | {"mrope_section": SECTION, "original_max_position_embeddings": trained}
    where = {"text_config": {"rope_scaling": longer}} if nested else {"rope_scaling": longer}
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    if nested:
        config["text_config"].update(where["text_config"])
    else:
        config.update(where)
    path.write_text(json.dumps(config))
    assert read_model_spec(checkpoint).decoder.max_position_embeddings == 4 * trained


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"type": "dynamic", "factor": 2.0}, "frequencies change with the length"),
        ({"type": "longrope", "factor": 2.0}, "frequencies change with the length"),
        ({"type": "su", "factor": 2.0}, "rope type 'su' is not supported"),
        ({"type": "yarn"}, "'yarn' needs a factor"),
        (YARN | {"factor": "4"}, "factor is '4'"),
        (YARN | {"factor": -1}, "factor is -1"),
        (YARN | {"attention_factor": 0}, "attention_factor is 0"),
        (YARN | {"original_max_position_embeddings": 0}, "original_max_position_embeddings is 0"),
        (YARN | {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"type": "llama3", "factor": 8.0}, "low_freq_factor is None"),
        ({"type": "llama3", "factor": 8.0} | LLAMA3 | {"low_freq_factor": 9.0}, "low_freq_factor"),
        ({"type": ["yarn"]}, "is not supported"),
    ],
)
def test_a_kind_or_value_that_can_not_be_followed_is_refused_by_name(change, rope, message):
    checkpoint = change({"rope_scaling": rope | {"mrope_section": SECTION}})
    with pytest.raises(ValueError, match=message):
        read_model_spec(checkpoint)
