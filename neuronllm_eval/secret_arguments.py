"""Model arguments that no one else may see, and texts without their values. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

SECRETS = ("token", "use_auth_token", "api_key")
LEFT_OUT = "..."
# `token=x` among arguments with commas or spaces between them, and `"token": "x"` in JSON.
_SECRET = re.compile(
    rf'(?<!\w)((?:{"|".join(SECRETS)})(?:=|"\s*:\s*))("(?:[^"\\]|\\.)*"|[^,\s}}]*)'
)


def without_secrets(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Model arguments with `...` for the values of secrets."""
    return {name: LEFT_OUT if name in SECRETS else value for name, value in arguments.items()}


def word_without_secrets(word: str) -> str:
    """A word of a command line with `...` for the values of secrets."""
    return _SECRET.sub(lambda found: found[1] + LEFT_OUT, word)
