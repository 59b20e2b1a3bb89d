"""The rule of each key of an adapter's adapter_config.json.

A test walks peft's LoraConfig and asks that each of its keys has a rule here.
"""

from __future__ import annotations

from .rules import KeyRule

SECTION = "adapter_config.json"
_OFF = (False, "", 0)
_EMPTY = ([], {}, False)

_HONOURED = {
    "base_model_name_or_path": "the base, where only the adapter is given",
    "revision": "refused where it is another than main and the base comes from the hub",
    "peft_type": "LORA; every other kind is refused",
    "r": "the rank, checked against the stored matrices",
    "lora_alpha": "scales the update",
    "use_rslora": "divides by the root of the rank",
    "rank_pattern": "ranks of single layers",
    "alpha_pattern": "alphas of single layers",
    "target_modules": "layers the adapter must have matrices for",
    "exclude_modules": "layers it must have none for",
    "layers_to_transform": "numbers of the layers it has matrices for",
    "layers_pattern": "which number of a name is the layer's",
    "bias": "stored biases replace the base's",
    "modules_to_save": "stored modules replace the base's",
}
_REFUSED: dict[str, tuple[str, tuple[object, ...]]] = {
    "fan_in_fan_out": ("Qwen2-VL has no transposed matrices", _OFF),
    "use_dora": ("DoRA's magnitudes are not merged here: call peft's merge_and_unload()", _OFF),
    "lora_bias": ("biases of lora_B are not merged here: call peft's merge_and_unload()", _OFF),
    "use_qalora": ("QA-LoRA pools its inputs: call peft's merge_and_unload()", _OFF),
    "use_bdlora": ("block-diagonal factors are not merged here", _EMPTY),
    "trainable_token_indices": ("single trained tokens: call peft's merge_and_unload()", _EMPTY),
    "target_parameters": ("updates of parameters outside of layers", _EMPTY),
    "layer_replication": ("it repeats layers, and the config of the base does not", _EMPTY),
    "alora_invocation_tokens": ("an adapter that some tokens switch on can't be merged", _EMPTY),
    "arrow_config": ("a router between adapters can't be merged", _EMPTY),
    "kasa_config": ("KaSA changes the base's weights", _EMPTY),
    "monteclora_config": ("MonteCLoRA's samples are not merged here", _EMPTY),
    "velora_config": ("VeLoRA is not supported", _EMPTY),
    "megatron_config": ("the layers of Megatron are not transformers'", _EMPTY),
    "ensure_weight_tying": ("adapters on both tied matrices are not merged here", _OFF),
    "init_lora_weights": (
        "this initialization changed the base's weights: save the adapter with "
        "path_initial_model_for_weight_conversion",
        (True, False, "gaussian", "orthogonal", "eva"),
    ),
}
_NO_EFFECT = {
    "lora_dropout": "only in training",
    "inference_mode": "only in training",
    "task_type": "names the class around the model",
    "auto_mapping": "names the class around the model",
    "peft_version": "tells who wrote the file",
    "megatron_core": "only with megatron_config",
    "qalora_group_size": "only with use_qalora",
    "loftq_config": "only with the initialization loftq",
    "eva_config": "only for the start of training",
    "corda_config": "only with the initialization corda",
    "lora_ga_config": "only with the initialization lora_ga",
    "runtime_config": "how peft computes",
}

RULES = (
    *(KeyRule(SECTION, key, "honoured", reason) for key, reason in _HONOURED.items()),
    *(
        KeyRule(SECTION, key, "refused", reason, neutral)
        for key, (reason, neutral) in _REFUSED.items()
    ),
    *(KeyRule(SECTION, key, "no effect", reason) for key, reason in _NO_EFFECT.items()),
)
