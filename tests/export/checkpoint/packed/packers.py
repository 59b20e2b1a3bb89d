"""Make packed checkpoints (AWQ, GPTQ, compressed-tensors) from a small float one, for tests.

Every format is written from its own definition, with plain integer arithmetic and nothing of
vlmedge, so that a reader can be held against it. Use it through the session fixture `packers`
(tests/conftest.py), which every folder of tests has:

    def test_something(packers, tmp_path):
        layers = packers.pack_checkpoint(folder, tmp_path / "packed", "awq")
        layer = layers["model.layers.0.self_attn.q_proj"]
        layer.codes, layer.scales, layer.zero_points, layer.order, layer.input_scale
        layer.weight  # float32[N, K], the weight these numbers mean

`packers.FORMATS` names the formats. The decoder's linear layers are packed; the vision tower, the
embeddings and lm_head stay float. The weights of `folder` are rounded to the nearest level, so the
packed model answers nearly like its float one. `float_copy` writes the float checkpoint that the
packed one means: exporting it must give what exporting the packed one gives.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from safetensors.torch import load_file, save_file

# Nibble i of a word of AWQ holds this column of its eight
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Format:
    """How one format rounds and stores.

    `group_size` -1 is one scale a row, 0 one a tensor. `kind` says which writer stores it.
    """

    kind: str
    bits: int = 4
    group_size: int = 32
    symmetric: bool = True
    act_order: bool = False
    activations: str = "float"
    scale_dtype: torch.dtype = torch.float16
    float_dtype: torch.dtype | None = torch.float16  # of what stays float; None: as it was


_CT = Format("pack-quantized", scale_dtype=torch.bfloat16, float_dtype=None)
_NAIVE = replace(_CT, bits=8, group_size=-1)
FORMATS: dict[str, Format] = {
    "awq": Format("awq", symmetric=False),
    "awq-gemv": Format("awq-gemv", symmetric=False),
    "gptq": Format("gptq"),
    "gptq-asymmetric": Format("gptq", symmetric=False),
    "gptq-v2": Format("gptq_v2", symmetric=False),
    "gptq-act-order": Format("gptq", act_order=True),
    "gptq-int8": Format("gptq", bits=8),
    "gptq-channel": Format("gptq", group_size=-1),
    "ct-w4a16": _CT,
    "ct-w4a16-asymmetric": replace(_CT, symmetric=False),
    "ct-w4a16-act-order": replace(_CT, act_order=True),
    "ct-w8a16": replace(_CT, bits=8, group_size=-1),
    "ct-w8a8": replace(_NAIVE, kind="int-quantized", activations="dynamic"),
    "ct-w8a8-static": replace(_NAIVE, kind="int-quantized", group_size=0, activations="static"),
    "ct-w8a8-asymmetric": replace(
        _NAIVE, kind="int-quantized", activations="dynamic", symmetric=False
    ),
    "ct-fp8-dynamic": replace(_NAIVE, kind="float-quantized", activations="dynamic"),
    "ct-fp8-static": replace(_NAIVE, kind="float-quantized", group_size=0, activations="static"),
}


@dataclass(frozen=True)
class PackedLayer:
    """The numbers of one packed layer, as a reader must find them.

    codes: uint8[N, K], unsigned integers, or the bits of E4M3. scales: float32[N, groups].
    zero_points: uint8[N, groups], None for E4M3. order: int32[K], of act-order only.
    """

    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None
    order: np.ndarray | None
    input_scale: float | None

    @property
    def weight(self) -> np.ndarray:
        """float32[N, K], by the definition, an input at a time."""
        num_rows, num_inputs = self.codes.shape
        groups = self.order
        if groups is None:
            groups = np.arange(num_inputs) // (num_inputs // self.scales.shape[1])
        weight = np.empty((num_rows, num_inputs), np.float32)
        for k in range(num_inputs):
            if self.zero_points is None:
                levels = self.codes[:, k].view(ml_dtypes.float8_e4m3fn).astype(np.float32)
            else:
                zeros = self.zero_points[:, groups[k]].astype(np.float32)
                levels = self.codes[:, k].astype(np.float32) - zeros
            weight[:, k] = levels * self.scales[:, groups[k]]
        return weight


def pack_checkpoint(source: Path, target: Path, format_name: str) -> dict[str, PackedLayer]:
    """Write the packed copy of `source`, a folder with one or more safetensors files, at `target`.

    Returns:
        The numbers of each packed layer, by its name.
    """
    form = FORMATS[format_name]
    tensors = _copy_all_but_weights(source, target)
    layers: dict[str, PackedLayer] = {}
    rng = np.random.default_rng(0)
    for name in sorted(tensors):
        if form.float_dtype is not None:
            tensors[name] = tensors[name].to(form.float_dtype)
    for name in sorted(tensors):
        layer = name.removesuffix(".weight")
        if ".layers." not in name or not name.endswith("_proj.weight") or "visual" in name:
            continue
        weight = tensors.pop(name).to(torch.float32).numpy()
        layers[layer] = round_weight(weight, form, rng)
        tensors |= {f"{layer}.{key}": t for key, t in store(layers[layer], form).items()}
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        target / "model.safetensors",
        {"format": "pt"},
    )
    edit_config(target, lambda config: config.update(quantization_config=quantization_config(form)))
    return layers


def float_copy(packed: Path, target: Path, layers: dict[str, PackedLayer]) -> None:
    """Write the float32 checkpoint that a packed one means at `target`."""
    tensors = _copy_all_but_weights(packed, target)
    kept = {
        name: tensor.to(torch.float32)
        for name, tensor in tensors.items()
        if name.rpartition(".")[0] not in layers or name.endswith(".bias")
    }
    kept |= {f"{name}.weight": torch.from_numpy(layer.weight) for name, layer in layers.items()}
    save_file(kept, target / "model.safetensors", {"format": "pt"})
    edit_config(target, lambda config: config.pop("quantization_config"))


def edit_config(folder: Path, change) -> None:
    """Let `change` edit config.json in place."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def _copy_all_but_weights(source: Path, target: Path) -> dict[str, torch.Tensor]:
    target.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(source.iterdir()):
        if path.suffix == ".safetensors":
            tensors |= load_file(path)
        elif path.is_file() and not path.name.endswith(".index.json"):
            shutil.copy(path, target / path.name)
    return tensors


def round_weight(weight: np.ndarray, form: Format, rng: np.random.Generator) -> PackedLayer:
    """Round float32[N, K] to the nearest levels; act-order takes a random order of the inputs."""
    num_rows, num_inputs = weight.shape
    group_size = form.group_size if form.group_size > 0 else num_inputs
    order = None
    if form.act_order:
        order = (rng.permutation(num_inputs) // group_size).astype(np.int32)
    groups = np.arange(num_inputs) // group_size if order is None else order
    num_groups = num_inputs // group_size
    lows = np.stack([weight[:, groups == g].min(axis=1) for g in range(num_groups)], axis=1)
    highs = np.stack([weight[:, groups == g].max(axis=1) for g in range(num_groups)], axis=1)
    if form.group_size == 0:
        lows, highs = np.full((1, 1), lows.min()), np.full((1, 1), highs.max())
    lows, highs = np.minimum(lows, 0), np.maximum(highs, 0)
    amax = np.maximum(np.maximum(-lows, highs), 1e-5)
    input_scale = 0.03125 if form.activations == "static" else None
    if form.kind == "float-quantized":
        scales = _as_stored(amax / 448, form)
        scales = np.broadcast_to(scales, (num_rows, num_groups)).copy()
        values = np.clip(weight / scales[:, groups], -448, 448)
        codes = values.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        return PackedLayer(codes, scales, None, None, input_scale)
    top, half = 2**form.bits - 1, 2 ** (form.bits - 1)
    if form.symmetric:
        scales = _as_stored(amax / (half - 0.5), form)
        zeros = np.full_like(scales, half)
    else:
        scales = _as_stored(np.maximum(highs - lows, 1e-5) / top, form)
        # GPTQ v1 stores a zero point less one: the first format can't hold 0
        zeros = np.clip(np.rint(-lows / scales), 1, top)
    scales = np.broadcast_to(scales, (num_rows, num_groups)).copy()
    zeros = np.broadcast_to(zeros, (num_rows, num_groups)).astype(np.uint8)
    levels = np.rint(weight / scales[:, groups]) + zeros[:, groups]
    codes = np.clip(levels, 0, top).astype(np.uint8)
    return PackedLayer(codes, scales, zeros, order, input_scale)


def _as_stored(scales: np.ndarray, form: Format) -> np.ndarray:
    """float32, rounded to the dtype the file holds."""
    return torch.from_numpy(scales).to(form.scale_dtype).to(torch.float32).numpy()


def store(layer: PackedLayer, form: Format) -> dict[str, torch.Tensor]:
    """The tensors a format keeps of a layer, by the last part of their names."""
    return _WRITERS[form.kind](layer, form)


def pack_words(values: np.ndarray, bits: int) -> np.ndarray:
    """uint8[R, C] -> int32[R, ceil(C * bits / 32)], value i of a word at its bits i * `bits`."""
    per_word = 32 // bits
    num_rows, num_columns = values.shape
    words = np.zeros((num_rows, -(-num_columns // per_word)), np.uint32)
    for column in range(num_columns):
        shift = bits * (column % per_word)
        words[:, column // per_word] |= values[:, column].astype(np.uint32) << np.uint32(shift)
    return words.view(np.int32)


def _store_awq(layer: PackedLayer, form: Format) -> dict[str, torch.Tensor]:
    def pack(values: np.ndarray) -> torch.Tensor:
        places = np.arange(values.shape[1]).reshape(-1, 8)[:, AWQ_ORDER].ravel()
        return torch.from_numpy(pack_words(values[:, places], form.bits))

    assert layer.zero_points is not None
    return {
        "qweight": pack(layer.codes.T),
        "qzeros": pack(layer.zero_points.T),
        "scales": torch.from_numpy(layer.scales.T.copy()).to(form.scale_dtype),
    }


def _store_awq_gemv(layer: PackedLayer, form: Format) -> dict[str, torch.Tensor]:
    """Rows as they are; zero points and scales padded as the kernel of AutoAWQ wants them."""
    assert layer.zero_points is not None
    width = -(-layer.scales.shape[1] // 8)  # in words of eight groups
    if form.group_size == 64:
        width = -(-width // 2) * 2
    elif form.group_size == 32:
        width = -(-width // 4) * 4
    padding = ((0, 0), (0, width * 8 - layer.scales.shape[1]))
    return {
        "qweight": torch.from_numpy(pack_words(layer.codes, form.bits)),
        "qzeros": torch.from_numpy(pack_words(np.pad(layer.zero_points, padding), form.bits)),
        "scales": torch.from_numpy(np.pad(layer.scales, padding)).to(form.scale_dtype),
    }


def _store_gptq(layer: PackedLayer, form: Format) -> dict[str, torch.Tensor]:
    assert layer.zero_points is not None
    zeros = layer.zero_points - (1 if form.kind == "gptq" else 0)
    num_inputs = layer.codes.shape[1]
    group_size = form.group_size if form.group_size > 0 else num_inputs
    order = np.arange(num_inputs) // group_size if layer.order is None else layer.order
    return {
        "qweight": torch.from_numpy(pack_words(layer.codes, form.bits).T.copy()),
        "qzeros": torch.from_numpy(pack_words(zeros.T, form.bits)),
        "scales": torch.from_numpy(layer.scales.T.copy()).to(form.scale_dtype),
        "g_idx": torch.from_numpy(order.astype(np.int32)),
    }


def _store_pack_quantized(layer: PackedLayer, form: Format) -> dict[str, torch.Tensor]:
    stored = {
        "weight_packed": torch.from_numpy(pack_words(layer.codes, form.bits)),
        "weight_scale": torch.from_numpy(layer.scales).to(form.scale_dtype),
        "weight_shape": torch.tensor(layer.codes.shape, dtype=torch.int64),
    }
    if not form.symmetric:
        assert layer.zero_points is not None
        packed = pack_words(layer.zero_points.T, form.bits).T  # along the rows
        stored["weight_zero_point"] = torch.from_numpy(packed.copy())
    if layer.order is not None:
        stored["weight_g_idx"] = torch.from_numpy(layer.order)
    return stored


def _store_naive(layer: PackedLayer, form: Format) -> dict[str, torch.Tensor]:
    """int8 or float8 as they are; a tensor's one scale is [1], a row's are [N, 1]."""
    codes = torch.from_numpy(layer.codes)
    if form.kind == "float-quantized":
        weight = codes.view(torch.float8_e4m3fn)
    else:
        weight = (codes.to(torch.int16) - 128).to(torch.int8)
    scales = layer.scales[:1, 0] if form.group_size == 0 else layer.scales
    stored = {"weight": weight, "weight_scale": torch.from_numpy(scales).to(form.scale_dtype)}
    if not form.symmetric:
        assert layer.zero_points is not None
        zeros = (layer.zero_points.astype(np.int16) - 128).astype(np.int8)
        stored["weight_zero_point"] = torch.from_numpy(zeros)
    if layer.input_scale is not None:
        stored["input_scale"] = torch.tensor([layer.input_scale], dtype=form.scale_dtype)
    return stored


_WRITERS = {
    "awq": _store_awq,
    "awq-gemv": _store_awq_gemv,
    "gptq": _store_gptq,
    "gptq_v2": _store_gptq,
    "pack-quantized": _store_pack_quantized,
    "int-quantized": _store_naive,
    "float-quantized": _store_naive,
}


def quantization_config(form: Format) -> dict:
    """What config.json of a real checkpoint of this format says, key by key."""
    if form.kind.startswith("awq"):
        return {
            "bits": form.bits,
            "group_size": form.group_size,
            "modules_to_not_convert": ["visual"],
            "quant_method": "awq",
            "version": "gemv" if form.kind == "awq-gemv" else "gemm",
            "zero_point": True,
        }
    if form.kind.startswith("gptq"):
        config = {
            "batch_size": 1,
            "bits": form.bits,
            "block_name_to_quantize": None,
            "cache_block_outputs": True,
            "damp_percent": 0.1,
            "dataset": None,
            "desc_act": form.act_order,
            "exllama_config": {"version": 1},
            "group_size": form.group_size,
            "max_input_length": None,
            "model_seqlen": None,
            "module_name_preceding_first_block": None,
            "modules_in_block_to_quantize": None,
            "pad_token_id": None,
            "quant_method": "gptq",
            "sym": form.symmetric,
            "tokenizer": None,
            "true_sequential": True,
            "use_cuda_fp16": False,
            "use_exllama": True,
        }
        return config | ({"checkpoint_format": "gptq_v2"} if form.kind == "gptq_v2" else {})
    strategies = {-1: "channel", 0: "tensor"}
    numbers = "float" if form.kind == "float-quantized" else "int"
    weights = _ct_args(form.bits, numbers, strategies.get(form.group_size, "group"), False)
    weights["symmetric"] = form.symmetric
    weights["group_size"] = form.group_size if form.group_size > 0 else None
    weights["actorder"] = "group" if form.act_order else None
    inputs = None
    if form.activations != "float":
        dynamic = form.activations == "dynamic"
        inputs = _ct_args(8, numbers, "token" if dynamic else "tensor", dynamic)
    return {
        "config_groups": {
            "group_0": {
                "input_activations": inputs,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": weights,
            }
        },
        "format": form.kind,
        "global_compression_ratio": 1.5,
        "ignore": ["re:visual.*", "lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def _ct_args(bits: int, numbers: str, strategy: str, dynamic: bool) -> dict:
    return {
        "actorder": None,
        "block_structure": None,
        "dynamic": dynamic,
        "group_size": None,
        "num_bits": bits,
        "observer": None if dynamic else "minmax",
        "observer_kwargs": {},
        "strategy": strategy,
        "symmetric": True,
        "type": numbers,
    }
