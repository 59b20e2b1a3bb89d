"""The loop over the backend, against the runtime's own answers."""

import numpy as np
import pytest
from gpu_check.compare import list_questions
from gpu_check.observe import Side

from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.options import LoweringOptions
from vlmedge.runtime.model import Model
from vlmedge.runtime.options import GenerationOptions

NUM_TOKENS = 6


@pytest.fixture(scope="module", params=["onnxruntime", "tensorrt-rtx"])
def bundle(request, make_bundle, tmp_path_factory):
    made = make_bundle("tiny")
    if request.param == "onnxruntime":
        return made.bundle
    folder = tmp_path_factory.mktemp("lowered") / "bundle"
    export_for_target(made.checkpoint, folder, LoweringOptions("tensorrt-rtx", "fp32", 512))
    return folder


@pytest.fixture
def side(bundle):
    side = Side(bundle, "cpu")
    yield side
    side.close()


def test_tokens_are_those_of_the_models_own_answer(bundle, side):
    (message,) = list_questions()[0]
    options = GenerationOptions(
        max_new_tokens=NUM_TOKENS, do_sample=False, ignore_eos=True, repetition_penalty=1.0
    )
    with Model.load(bundle, providers="cpu") as model:
        answer = model.chat([message], options)
    assert side.observe([message], NUM_TOKENS).token_ids == answer.token_ids


def test_told_tokens_are_read_in_place_of_the_chosen_ones(side):
    question = list_questions()[0]
    free = side.observe(question, NUM_TOKENS)
    told = side.observe(question, NUM_TOKENS, forced=free.token_ids)
    np.testing.assert_allclose(told.logits, free.logits, atol=1e-5)
    other = [(token + 1) % 300 for token in free.token_ids]
    changed = side.observe(question, NUM_TOKENS, forced=other)
    np.testing.assert_allclose(changed.logits[0], free.logits[0], atol=1e-5)
    assert np.abs(changed.logits[1:] - free.logits[1:]).max() > 1e-3
