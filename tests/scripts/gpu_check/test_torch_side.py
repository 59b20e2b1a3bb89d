"""transformers, on the CPU: that what is called there is there."""

import pytest
from gpu_check.record import SkippedError
from gpu_check.timing import DECODE_STEPS
from gpu_check.torch_side import measure, measure_transformers

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


def test_pictures_prompts_and_tokens_are_timed(with_model):
    torch.set_num_threads(1)
    with torch.inference_mode():
        figures = measure_transformers(torch, with_model, "cpu")
    assert {side: len(runs) for side, runs in figures["vision_ms"].items()} == {"56": 3, "112": 3}
    assert len(figures["prefill_ms"]) == 3
    assert len(figures["decode_ms"]) == DECODE_STEPS


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU")
def test_torch_without_a_gpu_is_skipped(with_model):
    with pytest.raises(SkippedError, match="no GPU"):
        measure(with_model)
