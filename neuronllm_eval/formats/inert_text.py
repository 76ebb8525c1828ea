"""Text that does nothing where it is shown: no instruction to a terminal, and no secret in it."""

from __future__ import annotations

import os
import re
import unicodedata
from typing import Any

# Names of values that no file and no message holds.
SECRETS = (
    "token",
    "use_auth_token",
    "auth_token",
    "access_token",
    "hf_token",
    "api_key",
    "password",
)
LEFT_OUT = "..."
# `token=x` among arguments with commas or spaces between them; `"token": "x"` in JSON, and as
# Python shows a dict.
_NAMED_SECRET = re.compile(
    rf"(?<!\w)((?:{'|'.join(SECRETS)})(?:=|[\"']\s*:\s*))"
    r"(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^,\s}]*)",
    re.IGNORECASE,
)
_USER_OF_URL = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_SHORTEST_TOKEN = 8  # characters; a shorter one would hide words


def redacted(text: str) -> str:
    """A text with `...` for access tokens, passwords, and what comes before @ in a URL."""
    token = os.environ.get("HF_TOKEN", "")
    if len(token) >= _SHORTEST_TOKEN:
        text = text.replace(token, LEFT_OUT)
    text = _NAMED_SECRET.sub(lambda match: match[1] + LEFT_OUT, text)
    return _HUB_TOKEN.sub(LEFT_OUT, _USER_OF_URL.sub(LEFT_OUT, text))


def without_secrets(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments without those named as secrets, at any depth; `redacted` texts."""
    return {
        name: _redacted(value)
        for name, value in arguments.items()
        if str(name).lower() not in SECRETS
    }


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return without_secrets(value)
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return redacted(value) if isinstance(value, str) else value


def inert(text: str) -> str:
    r"""A text in which control characters, also those of text direction, are written as `\x1b`.

    Line ends and tabs stay.
    """
    return "\n".join(
        line if line.isprintable() else "".join(map(_visible, line)) for line in text.split("\n")
    )


def _visible(character: str) -> str:
    if character.isprintable() or character == "\t" or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode()
