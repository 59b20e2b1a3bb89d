"""Every key that transformers, or compressed-tensors, knows of a quantization_config has a rule."""

import inspect

import pytest
from transformers import AwqConfig, CompressedTensorsConfig, GPTQConfig

from vlmedge.export.checkpoint.keys.quantization import (
    ARGS,
    AWQ,
    COMPRESSED,
    GPTQ,
    GROUP,
    RULES,
)


def ruled(section):
    return {rule.key for rule in RULES if rule.section == section}


@pytest.mark.parametrize(
    ("section", "kind"),
    [(AWQ, AwqConfig), (GPTQ, GPTQConfig), (COMPRESSED, CompressedTensorsConfig)],
)
def test_every_argument_of_transformers_has_a_rule(section, kind):
    known = set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs"}
    assert not known - ruled(section)


@pytest.mark.parametrize(
    ("section", "config"), [(AWQ, AwqConfig()), (GPTQ, GPTQConfig(bits=4))], ids=["awq", "gptq"]
)
def test_every_key_that_transformers_writes_has_a_rule(section, config):
    assert not set(config.to_dict()) - ruled(section)


@pytest.mark.parametrize("name", ["awq", "gptq", "gptq-v2", "ct-w4a16", "ct-fp8-static"])
def test_keys_of_real_files_are_known(packers, name, tmp_path):
    from vlmedge.export.checkpoint.packed.config import read_quantization

    config = packers.quantization_config(packers.FORMATS[name])
    found = read_quantization(tmp_path, {"quantization_config": config})
    assert found is not None
    assert not found.remarks


def test_every_field_of_compressed_tensors_has_a_rule():
    library = pytest.importorskip("compressed_tensors.quantization", reason="not installed")
    classes = {
        COMPRESSED: library.QuantizationConfig,
        GROUP: library.QuantizationScheme,
        ARGS: library.QuantizationArgs,
    }
    for section, kind in classes.items():
        assert not set(kind.model_fields) - ruled(section)


def test_no_key_has_two_rules():
    keys = [(rule.section, rule.key) for rule in RULES]
    assert len(keys) == len(set(keys))
