"""One file from the network: over https alone, in bounded time and size, and believed only by its sha256.

It deliberately writes nothing and chooses no source: who asks for a file says what it must be, and keeps it.
"""

from __future__ import annotations

import hashlib
import http.client
import threading
import time
import urllib.request
from typing import Any

from gpt2_nb_utils.text import one_line

NO_DOWNLOAD = "GPT2_NB_UTILS_NO_DOWNLOAD"
"""Set this environment variable to 1 and nothing is downloaded."""

ALLOWED_SCHEMES = ("https",)
SOCKET_TIMEOUT = 5.0
TOTAL_TIMEOUT = 15.0
"""Seconds after which a download is given up: for one wait on the network, and for all of it."""

ERRORS = (OSError, ValueError, http.client.HTTPException)
"""What `download` raises; `reason` tells it in a line."""


def download(url: str, sha256: str, size: int) -> bytes:
    """The content at `url`.

    Args:
        sha256: what its content must have.
        size: its bytes; no more than a little beyond is read.

    Raises:
        OSError, ValueError, http.client.HTTPException: it could not be had, not in time, not over https all the way, or it
            is something else.
    """
    outcome: list[bytes | Exception] = []

    def fetch() -> None:
        try:
            outcome.append(_fetch(url, size, time.monotonic() + TOTAL_TIMEOUT))
        except Exception as error:
            outcome.append(error)

    # In a thread, because a name look-up has no timeout of its own.
    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(TOTAL_TIMEOUT)
    if not outcome:
        raise TimeoutError(f"no end after {TOTAL_TIMEOUT:g} s")
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    if hashlib.sha256(outcome[0]).hexdigest() != sha256:
        raise ValueError(f"{len(outcome[0]):,} bytes came, and they are not the expected file")
    return outcome[0]


def reason(error: Exception) -> str:
    """What went wrong, in a line: some of it may be a server's own words."""
    told = str(getattr(error, "reason", None) or error or type(error).__name__)
    return one_line(" ".join(told.split()))[:300]


def _fetch(url: str, size: int, deadline: float) -> bytes:
    _check_scheme(url)
    content = b""
    with urllib.request.build_opener(_SameSchemes).open(url, timeout=SOCKET_TIMEOUT) as response:
        while len(content) <= size and (chunk := response.read1(65536)):
            content += chunk
            if time.monotonic() > deadline:
                raise TimeoutError(f"no end after {TOTAL_TIMEOUT:g} s")
    return content


class _SameSchemes(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where it may be fetched from: one step without encryption would be one too many."""

    def redirect_request(self, request: Any, *more: Any) -> Any:
        _check_scheme(more[-1])  # the new address
        return super().redirect_request(request, *more)


def _check_scheme(url: str) -> None:
    if not url.startswith(tuple(f"{scheme}://" for scheme in ALLOWED_SCHEMES)):
        raise ValueError(f"{url} is not {' or '.join(ALLOWED_SCHEMES)}")
