"""Make the documentation's table of all keys and their rules."""

from __future__ import annotations

from . import adapter as adapter_keys
from . import config as config_keys
from . import generation as generation_keys
from . import pixels as pixel_keys
from . import quantization as quantization_keys
from . import tokenizer as tokenizer_keys
from .rules import KeyRule

ALL_RULES: tuple[KeyRule, ...] = (
    *config_keys.RULES,
    *quantization_keys.RULES,
    *pixel_keys.RULES,
    *tokenizer_keys.RULES,
    *generation_keys.RULES,
    *adapter_keys.RULES,
)


def make_table() -> str:
    """A Markdown table a section: keys of one treatment and reason share a row."""
    parts = []
    for section in dict.fromkeys(rule.section for rule in ALL_RULES):
        rows: dict[tuple[str, str], list[str]] = {}
        for rule in ALL_RULES:
            if rule.section == section:
                reason = rule.reason
                if rule.treatment == "refused" and rule.neutral:
                    values = ", ".join(f"`{value!r}`" for value in rule.neutral)
                    reason += f"; allowed: {values}"
                rows.setdefault((rule.treatment, reason), []).append(f"`{rule.key}`")
        lines = [f"### {section}", "", "| keys | | how, or why |", "|---|---|---|"]
        for treatment in ("honoured", "refused", "no effect"):
            for (kind, reason), keys in rows.items():
                if kind == treatment:
                    cell = reason.replace("|", "\\|")
                    lines.append(f"| {', '.join(keys)} | {kind} | {cell} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
