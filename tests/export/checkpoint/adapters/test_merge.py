"""LoRA adapters merged by us against peft's own merge_and_unload, and every way one is refused."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLForConditionalGeneration

from vlmedge.export.checkpoint.adapters.config import read_adapter_config
from vlmedge.export.checkpoint.adapters.merge import choose_base
from vlmedge.export.checkpoint.keys.adapter import RULES
from vlmedge.export.checkpoint.open import open_checkpoint
from vlmedge.export.exporter import export_checkpoint
from vlmedge.export.graphs.weights import float_weight
from vlmedge.export.lowering.exporter import export_for_target
from vlmedge.export.lowering.options import LoweringOptions
from vlmedge.export.verify.adapted_model import load_model
from vlmedge.runtime.bundle.manifest_file import read_manifest
from vlmedge.runtime.cli.main import main

peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def load(folder, dtype=torch.float32):
    return Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=dtype)


@pytest.fixture
def make_adapter(read_only_checkpoint, tmp_path):
    """make(name, **LoraConfig) -> folder of an adapter with random factors and saved modules."""

    def make(name="adapter", *, size="tiny", seed=0, **config):
        torch.manual_seed(seed)
        base = read_only_checkpoint(size)
        config = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"]} | config
        model = peft.get_peft_model(load(base), peft.LoraConfig(**config))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(tmp_path / name)
        edit_config(tmp_path / name, base_model_name_or_path=str(base))
        return tmp_path / name

    return make


def edit_config(folder, **keys):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def edit_tensors(folder, change):
    tensors = {
        name: t.clone().contiguous() for name, t in change(load_file(folder / WEIGHTS)).items()
    }
    save_file(tensors, folder / WEIGHTS)


def merge_theirs(base, adapters, dtype=torch.float32):
    model = load_model(base, adapters, lambda folder: load(folder, dtype))
    return {name: t.float() for name, t in model.state_dict().items()}


def read_ours(opened):
    found = {}
    for name, source in opened.tensors.items():
        blocks = [b.encode()[0].reshape(-1) for b in float_weight("x", (source,), "fp32").blocks()]
        new = re.sub(r"^visual\.", "model.visual.", name)
        new = re.sub(r"^model\.(?!visual\.)", "model.language_model.", new)
        found[new] = torch.from_numpy(np.concatenate(blocks)).reshape(source.shape)
    if opened.spec.tied_lm_head:
        found[HEAD] = found["model.language_model.embed_tokens.weight"]
    return found


def assert_as_peft(base, *adapters):
    """Ours and theirs within 1e-6 of the largest weight: both sum in float32, in another order."""
    opened = open_checkpoint(base, adapters)
    ours, theirs, plain = read_ours(opened), merge_theirs(base, adapters), load(base).state_dict()
    assert ours.keys() == theirs.keys()
    for name, needed in theirs.items():
        gap = (ours[name] - needed).abs().max() / needed.abs().max()
        assert gap <= 1e-6, name
    assert any(not torch.equal(theirs[name], plain[name]) for name in theirs)
    return opened


SHAPES = {
    "decoder": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj", "up_proj"]},
    "vision": {"target_modules": ["qkv", "attn.proj", "fc1", "fc2", "mlp.0"]},
    "regex": {"target_modules": r".*language_model.*\.(q_proj|gate_proj)"},
    "all-linear": {"target_modules": "all-linear"},
    "rslora": {"use_rslora": True, "r": 8},
    "patterns": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 2, "v_proj": 3},
        "alpha_pattern": {"q_proj": 32, "self_attn": 1},
    },
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "one layer": {"layers_to_transform": 0},
    "excluded": {"target_modules": ["q_proj", "fc1"], "exclude_modules": ["blocks.0.mlp.fc1"]},
    "biases of its layers": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "saved norms and merger": {"modules_to_save": ["norm", "merger"]},
    "saved embeddings": {"modules_to_save": ["embed_tokens"]},
    "saved head": {"modules_to_save": ["lm_head"]},
    "saved head and embeddings": {"modules_to_save": ["embed_tokens", "lm_head"]},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_merged_adapter_has_pefts_weights(make_adapter, read_only_checkpoint, shape):
    assert_as_peft(read_only_checkpoint(), make_adapter(**SHAPES[shape]))


def test_an_untied_head_may_have_an_update(make_adapter, read_only_checkpoint):
    adapter = make_adapter(size="tiny-7b", target_modules=["lm_head", "q_proj"])
    assert_as_peft(read_only_checkpoint("tiny-7b"), adapter)


def test_several_adapters_are_merged_in_their_order(make_adapter, read_only_checkpoint):
    first = make_adapter("first", target_modules=["q_proj", "fc1"])
    second = make_adapter("second", seed=1, bias="lora_only", modules_to_save=["norm"])
    opened = assert_as_peft(read_only_checkpoint(), first, second)
    assert opened.name.endswith(" + first + second")
    assert_as_peft(read_only_checkpoint(), second, first)


def test_embeddings_saved_for_another_reason_stay_tied(make_adapter, read_only_checkpoint):
    adapter = make_adapter()
    table = load(read_only_checkpoint()).model.language_model.embed_tokens.weight.detach()
    name = "base_model.model.model.language_model.embed_tokens.weight"
    edit_tensors(adapter, lambda tensors: tensors | {name: table.roll(1, 0)})
    assert assert_as_peft(read_only_checkpoint(), adapter).spec.tied_lm_head


def test_a_bfloat16_merge_is_within_one_step_of_pefts(make_adapter, read_only_checkpoint):
    """Peft rounds the update, then the sum; we round the sum once: a step of the larger of both."""
    base, adapter = read_only_checkpoint(), make_adapter(target_modules=["q_proj", "fc1"])
    ours, theirs = (
        read_ours(open_checkpoint(base, [adapter])),
        merge_theirs(base, [adapter], torch.bfloat16),
    )
    plain = load(base).state_dict()
    for name, needed in theirs.items():
        update = (ours[name] - plain[name]).abs()
        largest = torch.maximum(torch.maximum(needed.abs(), update), plain[name].abs())
        step = torch.exp2(torch.floor(torch.log2(largest.clamp_min(1e-30))) - 7)
        assert ((ours[name].bfloat16().float() - needed).abs() <= step).all(), name


def test_names_of_older_modules_mean_the_same(make_adapter, read_only_checkpoint):
    new = make_adapter("new", target_modules=["q_proj", "qkv"])
    old = shutil.copytree(new, new.with_name("old"))

    def rename(tensors):
        return {
            name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): t
            for name, t in tensors.items()
        }

    edit_tensors(old, rename)
    edit_config(old, target_modules=r"^(model\.layers\..*q_proj|visual\..*qkv)$")
    assert any(".model.layers.0." in name for name in load_file(old / WEIGHTS))
    base = read_only_checkpoint()
    ours, same = (read_ours(open_checkpoint(base, [folder])) for folder in (new, old))
    assert all(torch.equal(ours[name], same[name]) for name in ours)


def test_an_adapters_own_folder_is_exported_with_its_base(
    make_adapter, read_only_checkpoint, tmp_path
):
    adapter, base = make_adapter(), read_only_checkpoint()
    manifest = export_checkpoint(adapter, tmp_path / "one")
    export_checkpoint(base, tmp_path / "two", adapters=[adapter])
    export_checkpoint(base, tmp_path / "plain")
    one, two, plain = (
        (tmp_path / name / "decoder.onnx.data").read_bytes() for name in ("one", "two", "plain")
    )
    assert one == two != plain
    assert {"adapter-1/adapter_config.json", "adapter-1/adapter_model.safetensors"} <= set(
        manifest.source.sha256
    )
    stamped = {path.resolve() for path in open_checkpoint(adapter).stamp.facts}
    assert {(adapter / name).resolve() for name in (WEIGHTS, CONFIG)} <= stamped


def test_a_bundle_for_tensorrt_is_merged_and_never_links(
    make_adapter, read_only_checkpoint, tmp_path
):
    adapter, base = make_adapter(), read_only_checkpoint()
    options = LoweringOptions("jetpack-6.2", "bf16")
    export_for_target(base, tmp_path / "plain", options)
    export_for_target(base, tmp_path / "merged", options, adapters=[adapter])
    plain, merged = (
        (tmp_path / name / "decoder.onnx.data").read_bytes() for name in ("plain", "merged")
    )
    assert plain != merged
    assert len(plain) == len(merged)
    linking = LoweringOptions("jetpack-6.2", "bf16", link_weights=True)
    with pytest.raises(ValueError, match="leave it out with adapters"):
        export_for_target(base, tmp_path / "linked", linking, adapters=[adapter])


def test_an_adapter_of_the_hub_is_exported_with_its_base(
    make_adapter, read_only_checkpoint, monkeypatch
):
    adapter = make_adapter()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(adapter))
    opened = open_checkpoint("owner/adapter")
    assert opened.folder == read_only_checkpoint()
    assert opened.adapters == (adapter,)


def test_the_command_merges_says_what_is_missing_and_verifies(
    make_adapter, read_only_checkpoint, tmp_path, capsys, monkeypatch
):
    adapter, base, target = make_adapter(), read_only_checkpoint(), tmp_path / "bundle"
    command = ["export", str(base), str(target), "--adapter", str(adapter)]
    assert main([*command, "--verify"]) == 0
    assert read_manifest(target).source.name == f"{base.name} + adapter"
    capsys.readouterr()
    assert main([*command, "--no-adapter"]) == 2
    assert "exclude each other" in capsys.readouterr().err
    assert main([*command[:3], "--adapter", str(tmp_path)]) == 2
    assert "is no adapter" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "peft", None)
    command[2] = str(tmp_path / "not written")
    assert main([*command, "--verify"]) == 1
    assert not (tmp_path / "not written").exists()
    assert "pip install peft" in capsys.readouterr().err


def test_the_command_tells_of_a_head_that_is_used(checkpoint, tmp_path, capsys):
    path = checkpoint / "model-00002-of-00002.safetensors"
    tensors = load_file(path)
    table = load(checkpoint).get_input_embeddings().weight.detach()
    save_file(tensors | {HEAD: table.roll(1, 0).clone()}, path)
    index = checkpoint / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][HEAD] = path.name
    index.write_text(json.dumps(content))
    assert main(["export", str(checkpoint), str(tmp_path / "bundle")]) == 0
    assert "differs from the embeddings" in capsys.readouterr().err


def test_an_adapter_beside_its_base_must_be_chosen_or_left_out(make_adapter, checkpoint):
    for path in make_adapter().iterdir():
        shutil.copy(path, checkpoint / path.name)
    with pytest.raises(ValueError, match=r"holds a model and an adapter.*--no-adapter"):
        open_checkpoint(checkpoint)
    plain, merged = (read_ours(open_checkpoint(checkpoint, a)) for a in ([], [checkpoint]))
    theirs = merge_theirs(checkpoint, [])
    assert all(torch.equal(plain[name], theirs[name]) for name in plain)
    assert any(not torch.equal(plain[name], merged[name]) for name in plain)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"from_the_future": [1]}, "unknown keys from_the_future"),
        ({"r": 5}, r"lora_A is \[4, 64\], rank 5"),
        ({"target_modules": ["v_proj"]}, "do not name 2 tensors"),
        ({"target_modules": ["q_proj", "v_proj"]}, r"names model\.layers\.0\.self_attn\.v_proj"),
        ({"target_modules": "(("}, "no regular expression"),
        ({"rank_pattern": [1]}, "an object"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
    ],
)
def test_a_setting_that_is_refused_is_named(make_adapter, read_only_checkpoint, config, named):
    adapter = make_adapter()
    edit_config(adapter, **config)
    with pytest.raises(ValueError, match=named) as error:
        open_checkpoint(read_only_checkpoint(), [adapter])
    assert len(str(error.value).splitlines()) == 1


LAYER = "base_model.model.model.language_model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "shape", "named"),
    [
        ("base_model.model.model.language_model.layers.9.self_attn.q_proj.lora_A.weight", (4, 64),
         "no layer for 1 tensors"),
        (f"{LAYER}.lora_A.weight", (4, 63), r"lora_A is \[4, 63\]"),
        (f"{LAYER}.lora_embedding_A", (4, 64), "an update of the embeddings"),
        (f"{LAYER}.lora_magnitude_vector", (64,), "DoRA"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", (4, 64), "does not begin with"),
        ("base_model.model.model.language_model.layers.0.new.weight", (4, 64), "the model has no"),
        ("base_model.model.model.language_model.norm.weight", (63,), r"is \[63\], the model needs"),
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(
    make_adapter, read_only_checkpoint, name, shape, named
):
    adapter = make_adapter()
    edit_tensors(adapter, lambda tensors: tensors | {name: torch.zeros(shape)})
    with pytest.raises(ValueError, match=named):
        open_checkpoint(read_only_checkpoint(), [adapter])


def test_half_of_a_pair_is_named(make_adapter, read_only_checkpoint):
    adapter = make_adapter()
    edit_tensors(adapter, lambda t: {n: v for n, v in t.items() if n != f"{LAYER}.lora_B.weight"})
    with pytest.raises(ValueError, match=r"q_proj has only lora_A"):
        open_checkpoint(read_only_checkpoint(), [adapter])


def test_an_update_of_a_tied_head_is_refused(make_adapter, read_only_checkpoint):
    adapter = make_adapter(target_modules=["lm_head", "q_proj"])
    with pytest.raises(ValueError, match="tied to the embeddings"):
        open_checkpoint(read_only_checkpoint(), [adapter])


def test_an_adapter_of_pytorchs_format_is_refused(make_adapter, read_only_checkpoint):
    adapter = make_adapter()
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model\.bin is not read"):
        open_checkpoint(read_only_checkpoint(), [adapter])


def test_an_adapter_whose_base_is_not_found_is_told_how(make_adapter, tmp_path):
    adapter = make_adapter()
    edit_config(adapter, base_model_name_or_path="/nowhere/base")
    with pytest.raises(ValueError, match=r"not at /nowhere/base: give the base"):
        open_checkpoint(adapter)
    edit_config(adapter, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="names no base_model_name_or_path"):
        open_checkpoint(adapter)
    edit_config(adapter, base_model_name_or_path="owner/name", revision="v2")
    with pytest.raises(ValueError, match="needs revision 'v2'"):
        open_checkpoint(adapter)
    with pytest.raises(ValueError, match="is no adapter"):
        choose_base(adapter, [tmp_path])


def test_every_key_of_pefts_config_has_a_rule():
    keys = set(peft.LoraConfig().to_dict())
    assert keys <= {rule.key for rule in RULES}
    assert len({rule.key for rule in RULES}) == len(RULES)


def test_what_peft_saves_by_default_is_read(make_adapter):
    config = read_adapter_config(make_adapter())
    assert (config.rank, config.alpha, config.targets) == (4, 6, ("q_proj",))


def test_a_whole_name_counts_whatever_the_numbers_of_layers(make_adapter, read_only_checkpoint):
    targets = ["model.language_model.layers.0.self_attn.q_proj", "v_proj"]
    adapter = make_adapter(target_modules=targets, layers_to_transform=[1])
    assert_as_peft(read_only_checkpoint("tiny"), adapter)


@pytest.mark.parametrize("name", ["non_lora_state_dict.bin", "non_lora_trainables.bin"])
def test_trained_weights_beside_an_adapter_are_refused(make_adapter, read_only_checkpoint, name):
    adapter = make_adapter()
    (adapter / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"{re.escape(name)} holds trained weights"):
        open_checkpoint(read_only_checkpoint("tiny"), [adapter])


def test_an_adapters_own_template_is_told_of(make_adapter, read_only_checkpoint):
    base, adapter = read_only_checkpoint("tiny"), make_adapter()
    for file in ("tokenizer.json", "generation_config.json"):
        if (base / file).exists():
            shutil.copy(base / file, adapter)
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    (remark,) = open_checkpoint(base, [adapter]).remarks
    assert remark.startswith("chat_template.jinja of adapter adapter differs from the base's")


def test_a_config_beside_an_adapter_alone_makes_no_model_of_it(make_adapter, read_only_checkpoint):
    base, adapter = read_only_checkpoint("tiny"), make_adapter()
    shutil.copy(base / "config.json", adapter)
    assert choose_base(adapter, None) == (str(base), (adapter,))
