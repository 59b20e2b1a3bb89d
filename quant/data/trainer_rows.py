"""Turn a row as trainers write it into the form that `jsonl.py` reads: messages and answers.

| written for | keys |
|---|---|
| LLaVA | `conversations` of `from` (human, gpt, system) and `value`; `image`, `video` |
| LLaMA-Factory | `messages` or `conversations` of `role` and `content`; `images`, `videos` |
| TRL, OpenAI | `messages` of parts, pictures in them or as `{"type": "image"}` beside `images` |
| ms-swift | `query`, `response`, `history`, `system`; `images`, `videos` |

`<image>` and `<video>` in a text stand for the row's pictures and clips, in order; a row that has
pictures and no place for them gets them before its first question, as ms-swift has it. Where the
last turn is the assistant's, it is the accepted answer; earlier ones stay in the conversation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

TURNS = ("conversations", "conversation", "messages")
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",
}
# A key of a row -> the kind of what it lists
MEDIA = {"image": "image", "images": "image", "video": "video", "videos": "video"}
REFUSED = {"audio": "sound", "audios": "sound", "tools": "tools", "functions": "tools"}
_PLACE = re.compile(r"(<image>|<video>)")
_PLURALS = {"image": "pictures", "video": "clips"}
_PATHS = ("path", "url", "image", "video")  # of a picture that is an object
# What a row of these forms is read by; the others are left alone, and counted
KNOWN = frozenset(
    (
        *(*TURNS, *MEDIA, *REFUSED, "query", "response", "history", "system"),
        *("answer", "answers", "id", "task", "metric", "choices", "question_id"),
    )
)


def is_trainer_row(raw: Mapping[str, Any]) -> bool:
    """Whether a row is one of the table's, and not a question of our own forms."""
    if "query" in raw or any(key in raw for key in TURNS[:2]):
        return True
    messages = raw.get("messages")
    if not isinstance(messages, list) or not messages:
        return False
    last = messages[-1]
    roles = {message.get("role") for message in messages if isinstance(message, Mapping)}
    ends = isinstance(last, Mapping) and ROLES.get(str(last.get("role"))) == "assistant"
    return ends or "developer" in roles or bool(MEDIA.keys() & raw.keys())


def make_long_form(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Messages that end with a question, answers, and the row's other known keys.

    Args:
        raw: a row for which `is_trainer_row` holds, without nulls.

    Raises:
        ValueError: what is wrong with it, without its place.
    """
    for key, what in REFUSED.items():
        if raw.get(key):
            raise ValueError(f"it has {key}: {what} can't be asked about here")
    turns = _list_query(raw) if "query" in raw else _list_turns(raw)
    if not turns:
        raise ValueError("it has no turns")
    media = {"image": list(_list_media(raw, "image")), "video": list(_list_media(raw, "video"))}
    messages = _place_media(turns, media)
    made = {key: raw[key] for key in ("id", "task", "metric", "choices") if key in raw}
    if "id" not in made and "question_id" in raw:
        made["id"] = raw["question_id"]
    answers = {key: raw[key] for key in ("answer", "answers") if key in raw}
    if messages[-1]["role"] == "assistant":
        last = messages.pop()
        if answers:
            raise ValueError(
                f"it ends with the assistant's turn and has {', '.join(answers)} beside it: "
                "give the answer once"
            )
        answers = {"answer": _read_answer(last["content"])}
    if not messages or messages[-1]["role"] != "user":
        raise ValueError("no question of a user comes before the answer")
    return made | answers | {"messages": messages}


def _list_turns(raw: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(role, content) of each turn."""
    keys = [key for key in TURNS if key in raw]
    if len(keys) > 1:
        raise ValueError(f"it has {' and '.join(keys)}: give one of them")
    turns = raw[keys[0]]
    if not isinstance(turns, list):
        raise ValueError(f"{keys[0]} is no list of turns")
    found = [_read_turn(turn, f"{keys[0]}[{i}]") for i, turn in enumerate(turns)]
    if isinstance(raw.get("system"), str) and raw["system"] and found and found[0][0] != "system":
        found.insert(0, ("system", raw["system"]))
    return found


def _read_turn(turn: Any, where: str) -> tuple[str, Any]:
    if not isinstance(turn, Mapping):
        raise ValueError(f"{where} is no object")
    role = turn.get("role", turn.get("from"))
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{where} is of {role!r:.40}, needed one of {', '.join(ROLES)}")
    content = turn.get("content", turn.get("value"))
    if turn.get("tool_calls"):
        raise ValueError(f"{where} has tool_calls: calls of tools can't be asked for here")
    if content is None:
        raise ValueError(f"{where} has no content")
    return ROLES[role], content


def _list_query(raw: Mapping[str, Any]) -> list[tuple[str, Any]]:
    turns: list[tuple[str, Any]] = []
    if raw.get("system"):
        turns.append(("system", raw["system"]))
    history = raw.get("history") or []
    if not isinstance(history, list):
        raise ValueError("history is no list of pairs of question and answer")
    for pair in history:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("history is no list of pairs of question and answer")
        turns += [("user", pair[0]), ("assistant", pair[1])]
    turns.append(("user", raw["query"]))
    if "response" in raw:
        turns.append(("assistant", raw["response"]))
    return turns


def _list_media(raw: Mapping[str, Any], kind: str) -> Iterator[Any]:
    """The row's pictures, or its clips: a clip is a folder's path or a list of frames."""
    keys = [key for key, of in MEDIA.items() if of == kind and raw.get(key)]
    if len(keys) > 1:
        raise ValueError(f"it has {' and '.join(keys)}: give one of them")
    for key in keys:
        values = raw[key] if isinstance(raw[key], list) else [raw[key]]
        is_frames = key == "video" and len(values) > 1  # one clip, as a list of its frames
        for i, value in enumerate([values] if is_frames else values):
            yield _read_medium(value, kind, f"{key}[{i}]")


def _read_medium(value: Any, kind: str, where: str) -> Any:
    if isinstance(value, Mapping):
        found = [value[key] for key in _PATHS if isinstance(value.get(key), str)]
        value = found[0] if found else None
    if kind == "video" and isinstance(value, list) and value:
        return [_read_medium(frame, "image", f"{where} frame {i}") for i, frame in enumerate(value)]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where} is no path of a {'clip' if kind == 'video' else 'picture'}")
    return value


def _place_media(turns: list[tuple[str, Any]], media: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Messages with every picture and clip in its place."""
    places = {"image": 0, "video": 0}
    has_media = any(media.values())
    for _, content in turns:
        for kind in _list_places(content, has_media):
            places[kind] += 1
    before: list[dict[str, Any]] = []
    for kind, found in media.items():
        if places[kind] == 0:
            before += [{"type": kind, kind: source} for source in found]
        elif places[kind] != len(found):
            raise ValueError(
                f"its turns have {places[kind]} places for {_PLURALS[kind]}, "
                f"{len(found)} are listed"
            )
    left = {kind: iter(found) for kind, found in media.items()}
    messages = []
    for role, content in turns:
        parts = _fill(content, left, has_media)
        if role == "user" and before:
            text = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
            parts, before = [*before, *text], []
        messages.append({"role": role, "content": parts})
    return messages


def _list_places(content: Any, has_media: bool) -> Iterator[str]:
    """Kinds of the places in a turn; without media at all, `<image>` is a text like others."""
    if isinstance(content, str):
        yield from (place[1:-1] for place in _PLACE.findall(content) if has_media)
        return
    for part in content if isinstance(content, list) else []:
        if isinstance(part, Mapping) and _is_bare(part):
            yield str(part["type"])


def _is_bare(part: Mapping[str, Any]) -> bool:
    """A picture of which only the place is told."""
    kind = part.get("type")
    return kind in ("image", "video") and not any(
        part.get(key) is not None for key in ("image", "video", "url", "path", "base64")
    )


def _fill(content: Any, left: Mapping[str, Iterator[Any]], has_media: bool) -> Any:
    if isinstance(content, list):
        return [
            dict(part) | {part["type"]: next(left[part["type"]])}
            if isinstance(part, Mapping) and _is_bare(part) and has_media
            else part
            for part in content
        ]
    if not isinstance(content, str) or not has_media or not _PLACE.search(content):
        return content
    parts: list[dict[str, Any]] = []
    for piece in _PLACE.split(content):
        if piece in ("<image>", "<video>"):
            kind = piece[1:-1]
            parts.append({"type": kind, kind: next(left[kind])})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _read_answer(content: Any) -> Any:
    """The text of the assistant's last turn."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") for part in content if isinstance(part, Mapping)]
    words = [text for text in texts if isinstance(text, str)]
    if len(words) != len(content):
        raise ValueError("the assistant's last turn holds more than text")
    return "".join(words)
