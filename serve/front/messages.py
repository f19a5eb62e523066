"""The messages of a chat, rebuilt from text and pictures alone: what is not understood is not passed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lvlm_guard.families.question import bare
from lvlm_guard.serve.errors import Refused
from lvlm_guard.serve.maskd.asks import MOST_TEXT

_OTHERS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("reasoning", "reasoning_content", "refusal", "name", "tool_call_id"), (str,)),
    "tool_calls": (list,),
    "function_call": (dict,),
}
"""What a message may hold beside role and content."""

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass(frozen=True)
class Conversation:
    """A chat that is understood.

    Args:
        messages: rebuilt; safe to pass on once the pictures' URLs are resolved.
        pictures: the `image_url` objects in `messages`, in order; their "url" is what the client sent.
        last: the text of the last user message; "" where it has none.
    """

    messages: list[dict[str, Any]]
    pictures: list[dict[str, Any]]
    last: str


def conversation(messages: object) -> Conversation:
    """Read the messages of a request; raises `Refused`, 400, for what can't be guarded or is malformed."""
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "messages is no list of messages: give at least one, {'role': 'user', 'content': ...}.")
    rebuilt: list[dict[str, Any]] = []
    pictures: list[dict[str, Any]] = []
    last: Any = None
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise Refused(400, f"{where} is no message: give an object with a role of {', '.join(_ROLES)}.")
        clean: dict[str, Any] = {"role": message["role"]}
        for key, value in message.items():
            if key == "content":
                clean[key] = _content(value, where, pictures)
            elif isinstance(value, _OTHERS.get(key, ())):
                clean[key] = value
            elif key != "role" and value is not None:
                raise Refused(400, f"{where}.{key:.80} is not served: a message holds role, content and tool calls.")
        rebuilt.append(clean)
        if clean["role"] == "user":
            last = clean.get("content")
    return Conversation(rebuilt, pictures, _text(last))


def question_of(text: str, drop: tuple[str, ...]) -> str:
    """Return what the matcher is asked, of the last user message.

    Args:
        text: of the message.
        drop: pieces that are no part of a question, such as the model's image token.

    Raises:
        Refused: 413, it is too long.
    """
    if len(text) > MOST_TEXT:  # nothing else looks at a text before its length was looked at
        raise Refused(
            413,
            f"The last user message has {len(text):,} characters; {MOST_TEXT:,} at most are taken. Put what is no "
            "question into a system message.",
        )
    return bare(text, drop)


def _content(content: object, where: str, pictures: list[dict[str, Any]]) -> Any:
    """Return the content rebuilt; adds its pictures."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Refused(400, f"{where}.content is neither text nor a list of parts.")
    parts: list[dict[str, Any]] = []
    for j, part in enumerate(content):
        place = f"{where}.content[{j}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            _only(part, ("type", "text"), place)
            parts.append({"type": "text", "text": part["text"]})
        elif kind == "image_url" and isinstance(part.get("image_url"), dict | str):
            _only(part, ("type", "image_url"), place)
            given = part["image_url"]
            image = {"url": given} if isinstance(given, str) else given
            _only(image, ("url", "detail"), f"{place}.image_url")
            if not isinstance(image.get("url"), str):
                raise Refused(400, f"{place}.image_url has no url: send data:image/png;base64,...")
            picture = {"url": image["url"]}
            pictures.append(picture)
            parts.append({"type": "image_url", "image_url": picture})
        else:
            raise Refused(
                400,
                f"{place} is no text and no picture ({kind!s:.40}): text and image_url alone are served.",
            )
    return parts


def _only(given: dict[str, Any], known: tuple[str, ...], place: str) -> None:
    for key, value in given.items():
        if key not in known and value is not None:
            why = " (it would stand in for the picture in the cache, other clients' too)" if key == "uuid" else ""
            raise Refused(400, f"{place}.{key:.80} is not allowed{why}: leave it out. Known: {', '.join(known)}.")


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if part["type"] == "text")
    return content or ""
