"""Find the chat template of a checkpoint, wherever its generation of files keeps it.

The processor's own counts before the tokenizer's: processor_config.json, chat_template.json,
chat_template.jinja, additional_chat_templates/default.jinja; then tokenizer_config.json. So does
transformers 5.24, older versions mostly.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ....runtime.errors import BundleError
from ....runtime.files.regular_file import read_regular_text
from ....runtime.inputs.template.render import compile_template
from ..files.json_file import read_json
from ..files.origin import Found, Origin

TEMPLATE_NAME = "chat_template.jinja"
# Files with a key chat_template, those that count first
_JSON_BEFORE = ("processor_config.json", "chat_template.json")
_JSON_AFTER = ("tokenizer_config.json",)
_MORE = "additional_chat_templates"  # a folder of further ones, by name


def read_chat_template(folder: Path) -> str:
    """The template's text alone; see `find_chat_template`."""
    return find_chat_template(folder).value


def find_chat_template(folder: Path) -> Found[str]:
    """Read the chat template that transformers renders prompts with.

    Raises:
        ValueError: there is none, or several and none is the default; or it has a syntax error.
    """
    found = list(_list_templates(folder))
    more = sorted(path.name for path in (folder / _MORE).glob("*.jinja"))
    if more and (folder / "chat_template.json").exists():
        raise ValueError(
            f"{folder} has both chat_template.json and {_MORE}/{more[0]}, which transformers "
            f"refuses: move the template of chat_template.json into {TEMPLATE_NAME}"
        )
    if more and (not found or found[0][0] in _JSON_AFTER):
        raise ValueError(
            f"{folder / _MORE} has {', '.join(more)}, and none is the default: put the model's "
            f"template into {folder / TEMPLATE_NAME}"
        )
    if not found:
        raise ValueError(
            f"{folder} has no chat template in {TEMPLATE_NAME}, chat_template.json or "
            f"tokenizer_config.json: put the model's template into {folder / TEMPLATE_NAME}"
        )
    (file, key, template), others = found[0], found[1:]
    _check(folder, template)
    differing = [name for name, _, other in others if other.strip() != template.strip()]
    unusual = tuple(f"{name}: another chat template, {file} counts first" for name in differing)
    if [name for name in more if name != "default.jinja"]:
        unusual += (f"{_MORE}: further chat templates, which are not taken along",)
    return Found(
        template, (Origin("chat_template", f"{len(template)} characters", file, key),), unusual
    )


def _list_templates(folder: Path) -> Iterator[tuple[str, str | None, str]]:
    """(file, key, text) of every template that is the default of its file."""
    for name in (*_JSON_BEFORE, TEMPLATE_NAME, f"{_MORE}/default.jinja", *_JSON_AFTER):
        path = folder / name
        if not path.exists():
            continue
        if name.endswith(".jinja"):
            yield name, None, read_regular_text(path)
        elif (template := _pick_default(read_json(path).get("chat_template"))) is not None:
            yield name, "chat_template", template


def _pick_default(template: Any) -> str | None:
    """A text, or the default of several: a list with names, or an object."""
    if isinstance(template, list):
        items = [item for item in template if isinstance(item, dict)]
        named = [item.get("template") for item in items if item.get("name") == "default"]
        template = named[-1] if named else None
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


def _check(folder: Path, template: str) -> None:
    try:
        template.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can spell
        raise ValueError(f"{folder}: the chat template is no valid Unicode: {error}") from error
    try:
        compile_template(template)
    except BundleError as error:
        raise ValueError(f"{folder}: {error}") from error
