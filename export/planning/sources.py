"""Read what a plan needs of a checkpoint folder, a hub id or a bundle, without its weights.

Of a checkpoint config.json is enough. Of a bundle the manifest, and the graphs' headers for what
the manifest doesn't say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...runtime.bundle.embedding_table import EmbeddingTable
from ...runtime.bundle.manifest import (
    MANIFEST_NAME,
    DecoderSpec,
    Manifest,
    MropeRule,
    PixelBudget,
    VisionSpec,
)
from ...runtime.bundle.manifest_file import read_manifest
from ...runtime.files.path_kind import HUB_ID, explain_no_checkpoint
from ...runtime.files.regular_file import read_regular_text
from ...runtime.inputs.messages import MediaPart, Message
from ...runtime.inputs.prompt import ChatTemplate
from ...runtime.inputs.tokens import TextTokenizer
from ..checkpoint.config import ModelSpec, read_model_spec
from ..checkpoint.files.json_file import read_json
from ..checkpoint.pixels import read_pixel_budget
from ..checkpoint.text.chat_template import read_chat_template
from ..checkpoint.text.tokenizer import TOKENIZER_NAME, find_tokenizer
from .model_shapes import LM_HEAD, ModelShapes, Part, make_shapes
from .onnx_header import Initializer, read_initializers
from .precision import FLOAT, FLOAT_BYTES, FloatName, ModelPrecision, read_coverage
from .tokens import PromptCounter
from .weight_bytes import StoredTensor

PACKED_KEYS = ("quantization_config", "compression_config")  # of config.json
HUB_FILES = ["*.json", "*.jinja"]  # without the weights
_DTYPES: dict[str, FloatName] = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "float32": "float32",
}


@dataclass(frozen=True, slots=True)
class PlanModel:
    """A model as a plan sees it.

    Attributes:
        stored: what floats of the checkpoint are.
        precision: of a bundle; None: of a checkpoint, which has none yet.
        manifest: of a bundle.
        tensors: of a bundle, graph -> what its file refers to.
        table_bytes: of a bundle, of the embedding table.
        count: counts a prompt's tokens; None: there is no tokenizer.
    """

    name: str
    shapes: ModelShapes
    vision: VisionSpec
    decoder: DecoderSpec
    pixels: PixelBudget
    mrope_rule: MropeRule
    stored: FloatName
    tied_lm_head: bool | None  # None: a bundle, which stores its head in any case
    precision: ModelPrecision | None = None
    manifest: Manifest | None = None
    tensors: dict[str, list[StoredTensor]] | None = None
    table_bytes: int | None = None
    count: PromptCounter | None = None


def open_model(source: str | Path) -> PlanModel:
    """Read what a plan needs.

    Raises:
        ValueError: neither a checkpoint nor a hub id, or one that is not supported.
        BundleError: a damaged bundle.
    """
    folder = Path(source)
    if (folder / MANIFEST_NAME).is_file():
        return _open_bundle(folder)
    if problem := explain_no_checkpoint(folder):
        raise ValueError(problem)
    if not folder.is_dir():
        folder = _fetch(str(source))
    spec = read_model_spec(folder)
    if any(read_json(folder / "config.json").get(key) for key in PACKED_KEYS):
        raise ValueError(
            f"the weights of {folder} are packed, which is not planned yet: give the float "
            "checkpoint it was made from, with --recipe"
        )
    name = folder.resolve().name if Path(source).is_dir() else str(source)
    return PlanModel(
        name=name,
        shapes=make_shapes(spec.vision, spec.decoder, spec.vision_mlp_size, spec.decoder_mlp_size),
        vision=spec.vision,
        decoder=spec.decoder,
        pixels=read_pixel_budget(folder, spec),
        mrope_rule="paper",
        stored=_read_dtype(folder),
        tied_lm_head=spec.tied_lm_head,
        count=_make_checkpoint_counter(folder, spec),
    )


def _open_bundle(folder: Path) -> PlanModel:
    manifest = read_manifest(folder)
    found = {name: read_initializers(folder / spec.file) for name, spec in manifest.graphs.items()}
    shapes = make_shapes(
        manifest.vision,
        manifest.decoder,
        _find_rows(found["vision"], ("visual.blocks.0.mlp.fc1.weight",)),
        _find_rows(
            found["decoder"],
            ("model.layers.0.mlp.gate_proj+up_proj.weight", "model.layers.0.mlp.gate_proj.weight"),
        ),
    )
    record = manifest.quantization
    path = folder / manifest.chat_template_file
    tokenizer = TextTokenizer(
        folder / manifest.tokenizer_file, manifest.tokens, manifest.decoder.vocab_size
    )
    return PlanModel(
        name=folder.resolve().name,
        shapes=shapes,
        vision=manifest.vision,
        decoder=manifest.decoder,
        pixels=manifest.pixels,
        mrope_rule=manifest.mrope_rule,
        stored=_DTYPES.get(manifest.embedding.dtype, "bfloat16"),
        tied_lm_head=None,
        precision=read_coverage(manifest.coverage, record.recipe if record else FLOAT),
        manifest=manifest,
        tensors={name: [_place(t) for t in tensors] for name, tensors in found.items()},
        table_bytes=_measure_table(manifest.embedding),
        count=_make_counter(
            ChatTemplate(
                read_regular_text(path), tokenizer, manifest.tokens, manifest.special_tokens
            )
        ),
    )


def _find_rows(tensors: Sequence[Initializer], names: tuple[str, str] | tuple[str]) -> int:
    """Width of an MLP, by its first matrix; gate and up lie in one, or each in its own.

    Raises:
        ValueError: no such matrix.
    """
    for name in names:
        for tensor in tensors:
            if tensor.name.startswith(name) and tensor.shape:
                return tensor.shape[0] // (2 if "+" in name else 1)
    raise ValueError(f"the bundle's graphs have no matrix {' or '.join(names)}")


def _place(tensor: Initializer) -> StoredTensor:
    """A head that is the checkpoint's own tensor has the name of the table it is tied to."""
    part: Part = "vision" if tensor.name.startswith("visual") else "decoder"
    if tensor.name.startswith((LM_HEAD, "model.embed_tokens")):
        part = "lm_head"
    return StoredTensor(tensor.name, part, tensor.nbytes)


def _measure_table(table: EmbeddingTable) -> int:
    element_bytes = FLOAT_BYTES.get(table.dtype, 1)
    scales = 4 * math.prod(table.scales_shape) if table.packing else 0
    return element_bytes * math.prod(table.stored_shape) + scales


def _fetch(source: str) -> Path:
    """The small files of a model on the hub.

    Raises:
        ValueError: no hub id, or it can't be fetched.
    """
    if not HUB_ID.fullmatch(source):
        raise ValueError(f"{source} is neither a directory nor a hub id (owner/name)")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(
            f"no directory {source}; for a hub id, pip install vlmedge[export]"
        ) from error
    try:
        return Path(snapshot_download(source, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub client has many, of several libraries
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"no directory {source}, and as a hub id it could not be fetched: {reason}"
        ) from error


def _read_dtype(folder: Path) -> FloatName:
    """What config.json says the weights are; bfloat16 where it doesn't."""
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    sections = [config, text if isinstance(text, dict) else {}]
    named = [section.get(key) for section in sections for key in ("dtype", "torch_dtype")]
    words = next((word for word in named if isinstance(word, str)), "bfloat16")
    if words not in _DTYPES:
        raise ValueError(f"config.json: dtype is {words!r}, needed one of {', '.join(_DTYPES)}")
    return _DTYPES[words]


def _make_checkpoint_counter(folder: Path, spec: ModelSpec) -> PromptCounter | None:
    """None where the folder has no tokenizer, or no template for it."""
    path = folder / TOKENIZER_NAME
    if not path.exists():
        return None
    try:
        template = read_chat_template(folder)
    except ValueError:  # config.json alone is enough for a plan
        return None
    found = find_tokenizer(folder, spec.tokens).value
    tokenizer = TextTokenizer(path, spec.tokens, spec.decoder.vocab_size, found.content)
    return _make_counter(ChatTemplate(template, tokenizer, spec.tokens, found.special_tokens))


def _make_counter(chat: ChatTemplate) -> PromptCounter:

    def count(image_tokens: Sequence[int], video_tokens: Sequence[int]) -> int:
        parts = (
            *(MediaPart("image", ()) for _ in image_tokens),
            *(MediaPart("video", ()) for _ in video_tokens),
        )
        messages = [Message("user", parts, is_plain=False)]
        return len(chat.encode(messages, [*image_tokens, *video_tokens]))

    return count
