"""One file from the network: only over https, in bounded time and size, checked by its sha256."""

from __future__ import annotations

import hashlib
import os
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


class DownloadFailed(Exception):
    """Says why there is no file, in a line that can follow "and"."""


def download(url: str, sha256: str, size: int) -> bytes:
    """The content at `url`.

    Args:
        sha256: what its content must have.
        size: its bytes; no more than a little beyond is read.

    Raises:
        DownloadFailed: it is forbidden, it could not be had in time and over https alone, or it is
            not the expected file.
    """
    if os.environ.get(NO_DOWNLOAD) == "1":
        raise DownloadFailed(f"{NO_DOWNLOAD}=1 forbids the download")
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
    result = outcome[0] if outcome else TimeoutError(f"not finished after {TOTAL_TIMEOUT:g} s")
    if isinstance(result, bytes):
        if hashlib.sha256(result).hexdigest() == sha256:
            return result
        result = ValueError(f"{len(result):,} bytes received, which are not the expected file")
    # Some of it may be the server's own words.
    reason = str(getattr(result, "reason", None) or result or type(result).__name__)
    reason = one_line(" ".join(reason.split()))[:300]
    raise DownloadFailed(f"the download failed ({reason})")


def _fetch(url: str, size: int, deadline: float) -> bytes:
    _check_scheme(url)
    content = b""
    with urllib.request.build_opener(_SameSchemes).open(url, timeout=SOCKET_TIMEOUT) as response:
        while len(content) <= size and (chunk := response.read1(65536)):
            content += chunk
            if time.monotonic() > deadline:
                raise TimeoutError(f"not finished after {TOTAL_TIMEOUT:g} s")
    return content


class _SameSchemes(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to https: a single step without encryption is one too many."""

    def redirect_request(self, request: Any, *more: Any) -> Any:
        _check_scheme(more[-1])  # the new address
        return super().redirect_request(request, *more)


def _check_scheme(url: str) -> None:
    if not url.startswith(tuple(f"{scheme}://" for scheme in ALLOWED_SCHEMES)):
        raise ValueError(f"{url} is not {' or '.join(ALLOWED_SCHEMES)}")
