"""How two bundles are timed; how fast they are is not tested."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vlmedge.quant.check import speed
from vlmedge.quant.check.speed import count_speed_steps, measure_speed
from vlmedge.quant.data.examples import Example

PICTURE = Image.fromarray(np.zeros((60, 90, 3), np.uint8))
TEXT = Example("text", ({"role": "user", "content": "?"},))
LOOK = Example(
    "look",
    ({"role": "user", "content": [{"type": "image", "image": PICTURE}]},),
)


@pytest.fixture
def fakes(monkeypatch):
    """Two models with a clock of their own, and what they were asked in which order."""
    log = []

    class Fake:
        def __init__(self, bundle, factor):
            self.bundle, self.factor, self.count = bundle.name, factor, 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            log.append(("closed", self.bundle))

        def chat(self, messages, options):
            assert options.ignore_eos
            assert options.max_new_tokens == speed.NUM_NEW_TOKENS
            log.append(("chat", self.bundle))
            self.count += 1
            if self.count <= 2:  # the first run over both examples warms up
                return self.make_answer(1000)
            return self.make_answer(self.factor)

        def make_answer(self, factor):
            timings = SimpleNamespace(
                vision_s=0.1 * factor, prefill_s=0.2 * factor, decode_s=0.016 * factor
            )
            return SimpleNamespace(timings=timings, num_image_tokens=4)

    factors = {"ours": 2, "theirs": 1}
    monkeypatch.setattr(speed.Model, "load", lambda bundle, **_: Fake(bundle, factors[bundle.name]))
    peaks = iter([300, 100, 500, 200, 400, 150])

    def probe(request):
        log.append(("probe", request.bundle.rpartition("/")[2], request.width, request.height))
        return SimpleNamespace(peak_bytes=next(peaks) * 2**20)

    monkeypatch.setattr(speed, "probe", probe)
    monkeypatch.setattr(speed, "_find_largest", lambda bundle, examples: (84, 56))
    return log


def test_figures_are_medians_a_request_and_the_warm_up_is_not_counted(fakes, tmp_path):
    steps = []
    found = measure_speed(
        tmp_path / "ours", tmp_path / "theirs", [TEXT, LOOK], num_runs=3, on_step=steps.append
    )
    assert [(f.what, f.unit) for f in found] == [
        ("vision", "ms"),
        ("prefill", "ms"),
        ("decode", "ms a token"),
        ("peak_memory", "MiB"),
    ]
    assert [f.reference for f in found] == pytest.approx([100, 200, 1, 150])
    assert [f.got for f in found] == pytest.approx([200, 400, 2, 400])
    assert len(steps) == count_speed_steps(2, 3)


def test_both_are_asked_in_turns_and_take_turns_to_be_first(fakes, tmp_path):
    measure_speed(tmp_path / "ours", tmp_path / "theirs", [TEXT, LOOK], num_runs=2)
    asked = [entry[1] for entry in fakes if entry[0] == "chat"]
    pairs = [tuple(asked[i : i + 2]) for i in range(0, len(asked), 2)]
    assert len(pairs) == 3 * 2
    assert {pair[0] for pair in pairs[::2]} == {pair[0] for pair in pairs} == {"ours", "theirs"}
    assert all(set(pair) == {"ours", "theirs"} for pair in pairs)
    probes = [entry for entry in fakes if entry[0] == "probe"]
    assert probes == [("probe", "ours", 84, 56), ("probe", "theirs", 84, 56)] * 2
    # Memory is measured in fresh processes after both models are gone.
    assert fakes.index(("closed", "theirs")) < fakes.index(probes[0])


def test_the_largest_picture_after_resizing_is_what_memory_is_measured_with(make_bundle):
    bundle = make_bundle("tiny").bundle
    assert speed._find_largest(bundle, [TEXT, LOOK]) == (84, 56)
    assert speed._find_largest(bundle, [TEXT]) == (28, 28)


def test_real_bundles_without_pictures_have_no_vision_to_time(make_bundle):
    ours, theirs = make_bundle("tiny", "int8").bundle, make_bundle("tiny").bundle
    found = measure_speed(ours, theirs, [TEXT], num_runs=1, num_threads=1)
    assert [f.what for f in found] == ["prefill", "decode", "peak_memory"]
    assert all(f.reference > 0 and f.got > 0 for f in found)
