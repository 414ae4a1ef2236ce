"""Task files that people name by path or URL: fetched once, read as JSON."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

from retroact_lib.files import write_bytes
from retroact_lib.paths import cache_dir

_SECONDS = 60


def read_list(source: str | Path) -> list[Any]:
    """The JSON list at a path, or at a URL, which is downloaded once into the cache.

    Raises ValueError where it cannot be had, or is no JSON list.
    """
    path = _fetched(str(source))
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{source} cannot be read as JSON: {error}.") from None
    if not isinstance(entries, list):
        raise ValueError(f"{source} must hold a JSON list of questions, not a {type(entries).__name__}.")
    return entries


def _fetched(source: str) -> Path:
    if not re.match(r"https?://", source):
        return Path(source)
    path = cache_dir() / "downloads" / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.json"
    if not path.exists():
        try:
            with urllib.request.urlopen(source, timeout=_SECONDS) as answer:
                content = answer.read()
                json.loads(content)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ValueError(f"cannot download {source}, or it is not JSON: {error}.") from None
        write_bytes(path, content)
    return path
