"""Read config.json into the frozen ModelSpec that the graphs are built from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.bundle.manifest import DecoderSpec, TokenIds, VisionSpec
from .files.json_file import read_json
from .files.origin import Found, Origin
from .keys.config import check_config_keys
from .rope import RopeSpec, read_rope
from .text.tokenizer import find_eos

SUPPORTED = "Qwen2-VL (model_type qwen2_vl, Qwen2VLForConditionalGeneration) of any size"
MAX_LAYERS = 1024  # 72B has 80; beyond, a damaged config would name tensors without end
VISION_ROPE_THETA = 10_000.0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Sizes and constants of one Qwen2-VL."""

    vision: VisionSpec
    decoder: DecoderSpec
    tokens: TokenIds
    vision_mlp_size: int
    decoder_mlp_size: int
    rms_norm_eps: float
    rope: RopeSpec
    tied_lm_head: bool

    @property
    def merged_size(self) -> int:
        """Channels of the patches of one visual token side by side."""
        return self.vision.embed_dim * self.vision.spatial_merge_size**2

    @property
    def frame_patch_size(self) -> int:
        """Values of one patch of one frame: 3 channels * 14 * 14."""
        return 3 * self.vision.patch_size**2


def read_model_spec(folder: Path) -> ModelSpec:
    """The value of `find_model_spec` alone."""
    return find_model_spec(folder).value


def find_model_spec(folder: Path) -> Found[ModelSpec]:
    """Read config.json in the hub's flat layout or in transformers 5's nested one.

    What is not there, or null, has the default of transformers' class, that of the 72B: older
    versions saved only what differed from it.

    Raises:
        ValueError: names the key, what was got and what is supported.
    """
    config = read_json(folder / "config.json")
    _check_architecture(config)
    unusual = check_config_keys(config)
    text = _section(config, "text_config") if config.get("text_config") is not None else config
    vision = _section(config, "vision_config")
    decoder = _read_decoder(text)
    vision_spec = VisionSpec(
        depth=_size(vision, "depth", 32, most=MAX_LAYERS),
        embed_dim=_size(vision, "embed_dim", 1280),
        num_heads=_size(vision, "num_heads", 16),
        patch_size=_size(vision, "patch_size", 14),
        temporal_patch_size=_size(vision, "temporal_patch_size", 2),
        spatial_merge_size=_size(vision, "spatial_merge_size", 2),
    )
    _check_vision(vision, vision_spec, decoder.hidden_size)
    rope = read_rope(text, decoder.head_dim, decoder.max_position_embeddings)
    context = rope.stretch_context(decoder.max_position_embeddings)
    decoder = dataclasses.replace(decoder, max_position_embeddings=context)
    spec = ModelSpec(
        vision=vision_spec,
        decoder=decoder,
        tokens=_read_tokens(folder, config, text, decoder.vocab_size),
        vision_mlp_size=int(vision_spec.embed_dim * _number(vision, "mlp_ratio", 4)),
        decoder_mlp_size=_size(text, "intermediate_size", 29568),
        rms_norm_eps=_number(text, "rms_norm_eps", 1e-5),
        rope=rope,
        tied_lm_head=_read_tied(config, text),
    )
    path = folder / "generation_config.json"
    _, file = _find_eos(folder, read_json(path) if path.exists() else {}, config, text)
    key = "eos_token" if file == "tokenizer_config.json" else "eos_token_id"
    eos = Origin("tokens.eos", list(spec.tokens.eos), file, key)
    return Found(spec, (*_trace(config, spec), eos), unusual)


def _trace(config: Mapping[str, Any], spec: ModelSpec) -> Iterator[Origin]:
    """Where the sizes came from, and what is worth a look among the rest."""
    nested = isinstance(config.get("text_config"), Mapping)
    text, prefix = (config["text_config"], "text_config.") if nested else (config, "")
    vision = config["vision_config"]
    sizes = dataclasses.asdict(spec.decoder)
    keys = {
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
    }
    for name in ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "vocab_size"):
        key = keys.get(name, name)
        there = text.get(key) is not None
        yield _make_origin(f"decoder.{name}", sizes[name], f"{prefix}{key}", there=there)
    key = "max_position_embeddings"
    there = text.get(key) is not None
    yield _make_origin(f"decoder.{key}", sizes[key], f"{prefix}{key}", there=there)
    rope_key = next((k for k in ("rope_scaling", "rope_parameters") if text.get(k)), None)
    rope = f"{spec.rope.kind}, sections {list(spec.rope.mrope_section)}, theta {spec.rope.theta:g}"
    yield _make_origin("decoder.rope", rope, f"{prefix}{rope_key}", there=rope_key is not None)
    for name in ("depth", "embed_dim", "num_heads", "patch_size"):
        there = vision.get(name) is not None
        value = getattr(spec.vision, name)
        yield _make_origin(f"vision.{name}", value, f"vision_config.{name}", there=there)
    key = "tie_word_embeddings"
    yield _make_origin(key, spec.tied_lm_head, key, there=config.get(key) is not None)


def _make_origin(setting: str, value: Any, key: str, *, there: bool) -> Origin:
    return Origin(setting, value, "config.json", key) if there else Origin(setting, value)


def _check_architecture(config: Mapping[str, Any]) -> None:
    model_type = config.get("model_type")
    if model_type != "qwen2_vl":
        architectures = config.get("architectures") or ["none named"]
        names = ", ".join(map(str, architectures))
        raise ValueError(
            f"unsupported architecture: model_type {model_type!r} ({names}); supported: {SUPPORTED}"
        )


def _read_decoder(text: Mapping[str, Any]) -> DecoderSpec:
    hidden_size = _size(text, "hidden_size", 8192)
    num_heads = _size(text, "num_attention_heads", 64)
    is_null = text.get("num_key_value_heads", 8) is None  # said so, it means all of them
    num_kv_heads = num_heads if is_null else _size(text, "num_key_value_heads", 8)
    if hidden_size % num_heads or num_heads % num_kv_heads or hidden_size // num_heads % 2:
        raise ValueError(
            f"hidden_size {hidden_size}, {num_heads} heads and {num_kv_heads} key/value heads: "
            "each must divide the one before, with an even head size"
        )
    head_dim = _get(text, "head_dim", hidden_size // num_heads)
    if head_dim != hidden_size // num_heads:
        raise ValueError(
            f"config.json: head_dim is {head_dim!r:.80}, hidden_size over num_attention_heads is "
            f"{hidden_size // num_heads}: others are not supported"
        )
    kinds = _get(text, "layer_types", [])
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise ValueError(
            f"config.json: layer_types is {kinds!r:.80}, only full_attention is supported"
        )
    if (act := _get(text, "hidden_act", "silu")) != "silu":
        raise ValueError(f"decoder activation {act!r} is not supported, only 'silu'")
    return DecoderSpec(
        num_layers=_size(text, "num_hidden_layers", 80, most=MAX_LAYERS),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=hidden_size // num_heads,
        vocab_size=_size(text, "vocab_size", 152064),
        max_position_embeddings=_size(text, "max_position_embeddings", 32768),
    )


def _check_vision(vision: Mapping[str, Any], spec: VisionSpec, hidden_size: int) -> None:
    if spec.embed_dim % (4 * spec.num_heads):
        raise ValueError(
            f"vision embed_dim {spec.embed_dim} must be a multiple of 4 * {spec.num_heads} heads: "
            "half of a head turns by the row, half by the column"
        )
    for key, name, value in (
        ("num_attention_heads", "num_heads", spec.num_heads),
        ("num_hidden_layers", "depth", spec.depth),
    ):
        if (other := _get(vision, key, value)) != value:
            raise ValueError(
                f"config.json: vision_config: {key} is {other!r:.80}, {name} is {value}, and "
                f"transformers 5 takes {key} for it: set {name} alone"
            )
    if (act := _get(vision, "hidden_act", "quick_gelu")) != "quick_gelu":
        raise ValueError(f"vision activation {act!r} is not supported, only 'quick_gelu'")
    if (size := _get(vision, "hidden_size", hidden_size)) != hidden_size:
        raise ValueError(f"vision hidden_size is {size}, the decoder's is {hidden_size}")
    for key in ("in_channels", "in_chans"):
        if _get(vision, key, 3) != 3:
            raise ValueError(f"vision {key} is {vision[key]}, only 3 (RGB) is supported")
    if spec.temporal_patch_size != 2:
        raise ValueError(f"temporal_patch_size is {spec.temporal_patch_size}, only 2 is supported")
    rope = _get(vision, "rope_parameters", {})
    theta = rope.get("rope_theta", VISION_ROPE_THETA)
    if rope.get("rope_type", "axial") != "axial" or theta != VISION_ROPE_THETA:
        raise ValueError(f"vision rope_parameters {rope} are not supported, only axial at 10000")


def _read_tied(config: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    """Whether the token embeddings are the lm_head as well; either section may say so."""
    values = [section.get("tie_word_embeddings") for section in (config, text)]
    for value in values:
        if value not in (None, True, False):
            raise ValueError(f"tie_word_embeddings is {value!r}, true or false is needed")
    return True in values


def _read_tokens(
    folder: Path, config: Mapping[str, Any], text: Mapping[str, Any], vocab_size: int
) -> TokenIds:
    """Special ids; those that end an answer come from generation_config.json where there is one."""
    path = folder / "generation_config.json"
    generation = read_json(path) if path.exists() else {}
    eos = _find_eos(folder, generation, config, text)[0]
    eos_ids = eos if isinstance(eos, list) else [eos]
    if not eos_ids or not all(type(token) is int and 0 <= token < vocab_size for token in eos_ids):
        raise ValueError(
            f"eos_token_id is {eos!r}, a token id under {vocab_size} or a list of them is needed"
        )
    pad = generation.get("pad_token_id", text.get("pad_token_id"))
    return TokenIds(
        vision_start=_size(config, "vision_start_token_id", 151652),
        vision_end=_size(config, "vision_end_token_id", 151653),
        image_pad=_size(config, "image_token_id", 151655),
        video_pad=_size(config, "video_token_id", 151656),
        eos=tuple(eos_ids),
        pad=pad if type(pad) is int else eos_ids[0],
    )


def _get(section: Mapping[str, Any], key: str, default: Any) -> Any:
    """A value; null counts as absent."""
    value = section.get(key)
    return default if value is None else value


def _find_eos(folder: Path, *sections: Mapping[str, Any]) -> tuple[Any, str | None]:
    """What ends answers, of the first of generation, config and text that says it, and the file."""
    files = ("generation_config.json", "config.json", "config.json")
    for file, section in zip(files, sections, strict=True):
        if (value := section.get("eos_token_id")) is not None:
            return value, file
    value = find_eos(folder)
    return value, None if value is None else "tokenizer_config.json"


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = config.get(key)
    if not isinstance(section, Mapping):
        raise ValueError(f"config.json: {key} is {section!r}, an object is needed")
    return section


def _size(section: Mapping[str, Any], key: str, default: int, most: int = 2**31 - 1) -> int:
    value = _get(section, key, default)
    if type(value) is not int or not 0 < value <= most:
        raise ValueError(f"config.json: {key} is {value!r}, an integer of 1 to {most} is needed")
    return value


def _number(section: Mapping[str, Any], key: str, default: float) -> float:
    value = _get(section, key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"config.json: {key} is {value!r}, a positive number is needed")
    return float(value)
