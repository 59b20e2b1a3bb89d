import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.runtime.backends.trt.engine_set import (
    ENGINE_SET_NAME,
    MAX_ENGINE_SET_BYTES,
    parse_engine_set,
    read_engine_set,
    record_weights,
    to_json,
)
from vlmedge.runtime.errors import BundleError


def test_a_set_that_is_written_is_read_back_equal(engine_set, write_set, tmp_path):
    folder = write_set(tmp_path, engine_set)
    assert read_engine_set(folder) == engine_set


def test_a_set_without_hashes_of_weights_is_read(engine_set):
    raw = json.loads(to_json(engine_set))
    del raw["weights_sha256"]
    assert parse_engine_set(json.dumps(raw)).weights_sha256 == {}


def test_weights_are_all_files_but_graphs_tokenizer_and_template(manifest):
    assert set(record_weights(manifest)) == {
        "decoder.onnx.data",
        "embedding.bin",
        "vision.onnx.data",
    }


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("schema_version",), 2, "schema version 2"),
        (("schema_version",), True, "schema_version"),
        (("version",), "", "version"),
        (("version",), None, "version"),
        (("command",), "vlmedge build\x1b[2J", r"U\+001B"),
        (("builder",), "tensorflow", "builder"),
        (("gpu", "sm"), "87", "8.7"),
        (("gpu", "name"), "a\nb", "gpu"),
        (("dtype",), "float8", "dtype"),
        (("surplus",), 1, "surplus"),
        (("graph_sha256", "vision"), "0" * 63, "SHA-256"),
        (("weights_sha256", "embedding.bin"), "G" * 64, "SHA-256"),
        (("graph_sha256",), {}, "no hash"),
        (("chains", "vision"), [], "no engines"),
        (("chains", "vision", 0, "file"), "../vision.engine", "leaves the folder"),
        (("chains", "vision", 0, "file"), "/etc/passwd", "leaves the folder"),
        (("chains", "vision", 0, "file"), "..", "leaves the folder"),
        (("chains", "vision", 0, "file"), "C:vision", "leaves the folder"),
        (("chains", "vision", 0, "file"), "", "leaves the folder"),
        (("chains", "vision", 0, "file"), "decoder.engine", "twice"),
        (("chains", "vision", 0, "sha256"), "A" * 64, "SHA-256"),
        (("chains", "vision", 0, "bytes"), 0, "0 bytes"),
        (("chains", "vision", 0, "profiles"), [], "no profile"),
        (("chains", "vision", 0, "profiles", 0, "use"), "training", "use"),
        (("chains", "vision", 0, "profiles", 0, "shapes", "pixel_values", "opt"), [1, 1, 1], "ord"),
        (("chains", "vision", 0, "profiles", 0, "shapes", "pixel_values", "max"), [1, 1], "dimens"),
        (("chains", "vision", 0, "inputs"), [], "no input"),
    ],
)
def test_what_makes_no_sense_is_one_line_with_its_place(engine_set, keys, value, message):
    raw = json.loads(to_json(engine_set))
    place = raw
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    with pytest.raises(BundleError, match=message) as error:
        parse_engine_set(json.dumps(raw))
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "9" * 5000, "[" * 10000, '"a"', "{}"])
def test_what_is_no_record_is_a_bundle_error(text):
    with pytest.raises(BundleError):
        parse_engine_set(text)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_value_replaced_by_another_is_read_or_a_bundle_error(engine_set, data):
    """Nothing else may come out, whatever a file holds."""
    raw = json.loads(to_json(engine_set))
    place, path = raw, []
    while isinstance(place, (dict, list)) and place:
        key = data.draw(
            st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place))))
        )
        path.append((place, key))
        place = place[key]
        if data.draw(st.booleans()):
            break
    container, key = path[-1]
    container[key] = data.draw(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.just([])
        | st.just({})
        | st.just("..")
        | st.just(-1)
    )
    try:
        read = parse_engine_set(json.dumps(raw))
    except BundleError:
        return
    assert dataclasses.is_dataclass(read)
    assert parse_engine_set(to_json(read)) == read


def test_a_missing_engine_is_named_with_the_command_that_builds_it(engine_set, write_set, tmp_path):
    folder = write_set(tmp_path, engine_set)
    (folder / "decoder.engine").unlink()
    with pytest.raises(BundleError, match=r"decoder\.engine.*vlmedge build bundle --max-batch 2"):
        read_engine_set(folder)


def test_a_cut_engine_is_found_before_it_is_loaded(engine_set, write_set, tmp_path):
    folder = write_set(tmp_path, engine_set)
    (folder / "decoder.engine").write_bytes(b"short")
    with pytest.raises(BundleError, match=r"5 bytes.*says 10.*vlmedge build"):
        read_engine_set(folder)


def test_a_folder_without_a_record_and_a_huge_or_binary_one_are_bundle_errors(tmp_path):
    with pytest.raises(BundleError, match="holds no engines"):
        read_engine_set(tmp_path)
    (tmp_path / ENGINE_SET_NAME).write_bytes(b"\xff\xfe")
    with pytest.raises(BundleError, match="UTF-8"):
        read_engine_set(tmp_path)
    (tmp_path / ENGINE_SET_NAME).write_bytes(b" " * (MAX_ENGINE_SET_BYTES + 1))
    with pytest.raises(BundleError, match="none of ours"):
        read_engine_set(tmp_path)
