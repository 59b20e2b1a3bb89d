"""The chat template of a checkpoint, wherever its generation of files keeps it."""

from __future__ import annotations

from pathlib import Path

from ...runtime.errors import BundleError
from ...runtime.regular_file import read_regular_text
from ...runtime.template import compile_template
from .json_file import read_json

TEMPLATE_NAME = "chat_template.jinja"


def read_chat_template(folder: Path) -> str:
    """The chat template's text, from wherever this generation of checkpoints keeps it.

    Raises:
        ValueError: there is none, or several and none is the default; or it has a syntax error.
    """
    template = _find_chat_template(folder)
    try:
        template.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can spell
        raise ValueError(f"{folder}: the chat template is no valid Unicode: {error}") from error
    try:
        compile_template(template)
    except BundleError as error:
        raise ValueError(f"{folder}: {error}") from error
    return template


def _find_chat_template(folder: Path) -> str:
    path = folder / TEMPLATE_NAME
    if path.exists():
        return read_regular_text(path)
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = folder / name
        template = read_json(path).get("chat_template") if path.exists() else None
        if isinstance(template, list):  # several, by name
            items = [item for item in template if isinstance(item, dict)]
            named = [item.get("template") for item in items if item.get("name") == "default"]
            template = named[-1] if named else None
        if isinstance(template, str):
            return template
    raise ValueError(
        f"{folder} has no chat template in {TEMPLATE_NAME}, chat_template.json or "
        f"tokenizer_config.json: put the model's template into {folder / TEMPLATE_NAME}"
    )
