"""The rule of each key of a quantization_config; see `rules.py`."""

from __future__ import annotations

from .rules import KeyRule, Treatment

AWQ = "quantization_config of awq"
GPTQ = "quantization_config of gptq"
COMPRESSED = "quantization_config of compressed-tensors"
GROUP = "config_groups of compressed-tensors"
ARGS = "weights and input_activations of compressed-tensors"


def _rules(section: str, treatment: Treatment, keys: dict[str, str]) -> tuple[KeyRule, ...]:
    return tuple(KeyRule(section, key, treatment, reason) for key, reason in keys.items())


_MADE = "told how the quantizer worked; its result is in the file"
_KERNEL = "chooses a kernel of another program"
# GPTQModel and optimum write these; AwqConfig of transformers inherits them.
_CALIBRATION = {
    "tokenizer": _MADE,
    "dataset": _MADE,
    "damp_percent": _MADE,
    "damp_auto_increment": _MADE,
    "act_group_aware": _MADE,
    "true_sequential": _MADE,
    "meta": _MADE,
    "mse": _MADE,
    "model_seqlen": _MADE,
    "block_name_to_quantize": _MADE,
    "module_name_preceding_first_block": _MADE,
    "batch_size": _MADE,
    "pad_token_id": _MADE,
    "cache_block_outputs": _MADE,
    "max_input_length": _KERNEL,
    "backend": _KERNEL,
    "use_exllama": _KERNEL,
    "exllama_config": _KERNEL,
    "use_cuda_fp16": _KERNEL,
    "disable_exllama": _KERNEL,
    "model_name_or_path": "a name",
    "model_file_base_name": "a name",
    "static_groups": "the groups are read from g_idx",
}

RULES: tuple[KeyRule, ...] = (
    *_rules(
        AWQ,
        "honoured",
        {
            "quant_method": "which format",
            "bits": "only 4",
            "w_bit": "an older name of bits",
            "group_size": "inputs that share a scale",
            "q_group_size": "an older name of group_size",
            "zero_point": "zero points are read from qzeros either way",
            "version": "gemm and gemv are read, others refused",
            "format": "a newer name of version",
            "checkpoint_format": "a newer name of version",
            "modules_to_not_convert": "layers that stay float; a packed one among them is refused",
            "sym": "zero points are read from qzeros either way",
            "backend": "llm-awq is refused, others choose a kernel of another program",
        },
    ),
    *_rules(
        AWQ,
        "no effect",
        {
            **{key: reason for key, reason in _CALIBRATION.items() if key != "backend"},
            "do_fuse": _KERNEL,
            "fuse_max_seq_len": _KERNEL,
            "modules_to_fuse": _KERNEL,
            "desc_act": "the format has no order of inputs",
            "modules_in_block_to_quantize": "transformers reads it for GPTQ only",
        },
    ),
    *_rules(
        GPTQ,
        "honoured",
        {
            "quant_method": "which format",
            "bits": "4 and 8",
            "group_size": "inputs that share a scale; -1: one scale a row",
            "desc_act": "the groups are read from g_idx, which must then be there",
            "sym": "zero points are read from qzeros either way",
            "format": "gptq or gptq_v2; others are refused",
            "checkpoint_format": "an older name of format",
            "is_marlin_format": "true is refused",
            "lm_head": "a packed lm_head needs true",
            "dynamic": "bits and group_size of single layers, or that they stay float",
            "modules_in_block_to_quantize": "a packed layer that isn't among them is refused",
            "modules_to_not_convert": "a packed layer among them is refused",
            "pack_dtype": "only int32",
        },
    ),
    *_rules(GPTQ, "no effect", _CALIBRATION),
    KeyRule(GPTQ, "adapter", "refused", "merge the adapter into the float model, then quantize"),
    KeyRule(GPTQ, "rotation", "refused", "a rotation of activations has no graph here"),
    KeyRule(GPTQ, "activation", "refused", "activations of these formats have no graph here"),
    *_rules(
        COMPRESSED,
        "honoured",
        {
            "quant_method": "which format",
            "config_groups": "how the targets of each group are stored",
            "format": "pack-, int-, float- and naive-quantized are read, others refused",
            "quantization_status": "only compressed",
            "ignore": "layers that stay float; a packed one among them is refused",
            "sparsity_config": "only a dense one",
            "transform_config": "only an empty one",
        },
    ),
    *_rules(
        COMPRESSED,
        "no effect",
        {
            "global_compression_ratio": "a statistic",
            "version": "of the library that wrote it",
            "run_compressed": "whether another program unpacks when it loads",
            "dequantize": "whether another program unpacks when it loads",
            "use_optimized_inference": _KERNEL,
        },
    ),
    KeyRule(
        COMPRESSED,
        "kv_cache_scheme",
        "refused",
        "a quantized KV cache is asked for when exporting; quantize the weights alone",
    ),
    KeyRule(COMPRESSED, "moe_sparsity_config", "refused", "Qwen2-VL has no experts"),
    *_rules(
        GROUP,
        "honoured",
        {
            "targets": "names, re: expressions and classes",
            "weights": "integers of 4 and 8 bits, E4M3",
            "input_activations": "a scale for each token, or one from calibration",
            "format": "as that of the whole",
        },
    ),
    KeyRule(GROUP, "output_activations", "refused", "quantized outputs have no graph here"),
    *_rules(
        ARGS,
        "honoured",
        {
            "num_bits": "4 and 8",
            "type": "int, float",
            "symmetric": "zero points are read where they are",
            "strategy": "tensor, channel and group of weights; token and tensor of activations",
            "group_size": "inputs that share a scale",
            "dynamic": "of activations",
            "actorder": "the groups are read from weight_g_idx, where it is",
        },
    ),
    *_rules(
        ARGS,
        "no effect",
        {
            "observer": _MADE,
            "observer_kwargs": _MADE,
            "scale_dtype": "the dtype of the tensor decides",
            "zp_dtype": "the dtype of the tensor decides",
        },
    ),
    KeyRule(ARGS, "block_structure", "refused", "scales of two-dimensional blocks have no graph"),
)
