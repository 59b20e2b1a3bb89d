"""A calibration file gives back every bit, can be read by people, and never breaks its reader."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlmedge.quant.quantize.calibration import (
    Calibration,
    LayerCalibration,
    hash_model,
    layer_from_dict,
    layer_to_dict,
    read_calibration,
    write_calibration,
)
from vlmedge.quant.quantize.input_range import InputRange
from vlmedge.quant.rounding.activations import LayerInput
from vlmedge.runtime.bundle.manifest_file import read_manifest

MODEL, DATA = "a1" * 32, "b2" * 32
NAME = "visual.blocks.0.attn.qkv"


def make_layer(seed=0, size=6):
    generator = np.random.default_rng(seed)
    seen = LayerInput(size, 1, with_moments=False)
    seen.update(generator.standard_normal((40, size), np.float32) * np.float32(0.1))
    found = InputRange(
        *("int8", "mse", 99.99, "search", "search"),
        amax=0.1 + 0.2,
        shift=generator.standard_normal(size, np.float32),
        strength=0.5,
        scales=2.0 ** generator.integers(-12, 13, size).astype(np.float32),
        error=0.1 / 3,
        error_without=0.2,
    )
    return LayerCalibration(seen.stats, found)


def make_calibration():
    layers = {NAME: make_layer(), "cache.key": LayerCalibration(make_layer(1).stats)}
    return Calibration(MODEL, "data.jsonl", DATA, 64, layers)


def assert_same(one, other):
    assert one.stats.to_dict() == other.stats.to_dict()
    if one.range is None or other.range is None:
        assert one.range is other.range
        return
    for field in dataclasses.fields(InputRange):
        values = (getattr(found.range, field.name) for found in (one, other))
        np.testing.assert_array_equal(*values)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "found.json"
    write_calibration(path, make_calibration())
    return path


def test_a_file_reads_back_bit_for_bit(path):
    found, needed = read_calibration(path, MODEL), make_calibration()
    assert (found.model, found.data, found.data_sha256) == (MODEL, "data.jsonl", DATA)
    assert found.num_examples == 64
    assert list(found.layers) == list(needed.layers)
    for name, layer in needed.layers.items():
        assert_same(found.layers[name], layer)
    again = path.with_name("again.json")
    write_calibration(again, found)
    assert again.read_bytes() == path.read_bytes()


magnitudes = st.floats(0, 3.4e38, allow_nan=False)


@settings(deadline=None)
@given(
    amax=magnitudes,
    errors=st.tuples(magnitudes, magnitudes),
    strength=st.one_of(st.none(), st.floats(0, 1)),
    exponents=st.one_of(st.none(), st.lists(st.integers(-126, 127), min_size=6, max_size=6)),
    shift=st.one_of(st.none(), st.lists(st.floats(width=32), min_size=6, max_size=6)),
)
def test_any_range_that_can_be_found_reads_back(amax, errors, strength, exponents, shift):
    scales = None if exponents is None else np.ldexp(np.float32(1), exponents)
    if shift is not None:
        shift = np.nan_to_num(np.array(shift, np.float32))
    layer = LayerCalibration(
        make_layer().stats,
        InputRange("fp8", "entropy", 99.0, "0.5", "off", amax, shift, strength, scales, *errors),
    )
    text = json.dumps(layer_to_dict(layer))
    assert_same(layer_from_dict("x", json.loads(text)), layer)


def test_a_file_is_lines_that_can_be_compared(path):
    lines = path.read_text().splitlines()
    assert max(map(len, lines)) < 400
    content = json.loads(path.read_text())
    assert content["data_sha256"] == DATA
    assert content["layers"][NAME]["range"]["strength"] == 0.5
    other = make_calibration()
    other.layers["cache.key"] = LayerCalibration(make_layer(2).stats)
    write_calibration(path, other)
    changed = [a for a, b in zip(lines, path.read_text().splitlines(), strict=False) if a != b]
    assert 0 < len(changed) < len(lines) / 2


def test_another_models_file_is_refused(path):
    with pytest.raises(ValueError, match=r"another model: calibrate again with --data"):
        read_calibration(path, "c3" * 32)


def test_what_cannot_be_read_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json cannot be read: No such file"):
        read_calibration(tmp_path / "none.json", MODEL)
    with pytest.raises(ValueError, match="cannot be read: it is a directory"):
        read_calibration(tmp_path, MODEL)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (["schema"], 2, "schema is 2, needed 1"),
        (["schema"], {"a": "b" * 500}, "schema is"),
        (["model"], 3, "model is 3, needed text"),
        (["data_sha256"], "x", "data_sha256 is 'x': no SHA-256"),
        (["num_examples"], "64", "num_examples"),
        (["layers"], [], "layers"),
        (["layers", NAME], None, NAME),
        (["layers", NAME, "range", "amax"], -1, "amax is -1"),
        (["layers", NAME, "range", "amax"], 1e39, r"amax is 1e\+39, which is no float32"),
        (["layers", NAME, "range", "amax"], True, "amax is True"),
        (["layers", NAME, "range", "strength"], "0.5", "strength is '0.5'"),
        (["layers", NAME, "range", "format"], 8, "format is 8, needed text"),
        (["layers", NAME, "range", "scales"], ["1 1 1 1 1"], "scales holds 5 numbers, needed 6"),
        (["layers", NAME, "range", "scales"], ["1 1 1 1 1 0"], "powers of two"),
        (["layers", NAME, "range", "scales"], ["1 1 1 1 1 3"], "powers of two"),
        (["layers", NAME, "range", "shift"], ["1 1 1 1 1 nan"], r"shift\[5\] is 'nan'"),
        (["layers", NAME, "stats", "channel_amax"], ["1"], "channel_amax"),
        (["layers", NAME, "stats", "histogram", "exponent"], 3, "histogram"),
        (["layers", NAME, "stats", "rows"], 41, "histogram"),
    ],
)
def test_a_changed_value_is_told_by_its_place_in_one_line(path, place, value, words):
    content = json.loads(path.read_text())
    part = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    path.write_text(json.dumps(content))
    needed = rf"found\.json is damaged: .*{words}.*calibrate again"
    with pytest.raises(ValueError, match=needed) as caught:
        read_calibration(path, MODEL)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))
    if len(place) > 2:
        assert f"layer {NAME}: " in message


@pytest.mark.parametrize("key", ["schema", "layers", "data"])
def test_keys_are_neither_missing_nor_more(path, key):
    content = json.loads(path.read_text())
    extra = content | {"extra": 1}
    del content[key]
    for changed, words in ((content, f"{key} is missing"), (extra, "'extra' is an unknown key")):
        path.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=words):
            read_calibration(path, MODEL)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([[], {}, [[]], "nan", "1 2", 10**400, -0.0, ["1 -inf"], ["x\ny"]]),
)


def list_places(value, place=()):
    """Every key and index in a JSON value."""
    items = []
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        yield (*place, key)
        yield from list_places(item, (*place, key))


PLACES = list(list_places(json.loads(json.dumps(layer_to_dict(make_layer())))))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PLACES), scalars)
def test_any_change_to_a_layer_is_read_or_refused(place, value):
    data = json.loads(json.dumps(layer_to_dict(make_layer())))
    part = data
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    try:
        found = layer_from_dict("x", data)
    except ValueError:
        return
    amax = found.range.amax if found.range else 0.0
    assert 0 <= amax < math.inf
    assert np.isfinite(found.stats.channel_amax).all()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "found.json"
    write_calibration(path, make_calibration())
    return path.read_bytes()


@settings(max_examples=100, deadline=None)
@given(data=st.data())
@example(data=None)
def test_a_cut_or_garbled_file_is_refused_in_one_line(whole, tmp_path_factory, data):
    content = bytearray(whole)
    if data is None:
        content = b"[" * 100_000
    elif data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 2)) :]
    else:
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + 3] = data.draw(st.binary(min_size=1, max_size=4))
    path = tmp_path_factory.getbasetemp() / "garbled.json"
    path.write_bytes(content)
    message = ""
    try:
        read_calibration(path, MODEL)
    except ValueError as error:
        message = str(error)
    assert "\n" not in message


def test_a_models_hash_is_of_its_weights_and_not_of_its_name(make_bundle):
    tiny = read_manifest(make_bundle("tiny").bundle)
    assert hash_model(tiny) == hash_model(dataclasses.replace(tiny, created_by="someone"))
    assert hash_model(tiny) != hash_model(read_manifest(make_bundle("tiny", seed=1).bundle))
    for name in ("vision.onnx.data", "decoder.onnx.data", tiny.embedding.file):
        other = dataclasses.replace(tiny.files[name], sha256="0" * 64)
        changed = dataclasses.replace(tiny, files=tiny.files | {name: other})
        assert hash_model(changed) != hash_model(tiny)
