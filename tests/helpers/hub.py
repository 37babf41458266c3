"""A stand-in for Hugging Face's hub on 127.0.0.1: a folder's files under the addresses that its library asks for."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def hub(folder: Path, cache: Path) -> Iterator[list[str]]:
    """While it is open, huggingface_hub asks this machine, and keeps what it gets in `cache`; the paths asked for.

    The files of a model lie in `folder/OWNER/NAME`, those of a data set in `folder/datasets/OWNER/NAME`. Where a file
    `.gated` lies among them, nobody may read them.
    """
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(f"{self.command} {unquote(self.path)}")
            path = unquote(self.path).partition("?")[0].strip("/")
            if about := re.fullmatch(r"api/(?:models/)?(.+?)/revision/(.+)", path):
                return self.describe(folder / about[1])
            if file := re.fullmatch(r"(.+?)/resolve/([^/]+|refs/convert/parquet)/(.+)", path):
                return self.send(folder / file[1], file[3])
            self.answer(404, b"", {})

        do_HEAD = do_GET

        def describe(self, repository: Path) -> None:
            if not repository.is_dir():
                return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            files = [path.relative_to(repository) for path in sorted(repository.rglob("*")) if path.is_file()]
            document = {"id": str(repository.relative_to(folder)), "sha": COMMIT, "siblings": []}
            document["siblings"] = [{"rfilename": str(name)} for name in files]
            self.answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

        def send(self, repository: Path, name: str) -> None:
            path = repository / name
            if not repository.is_dir():
                return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            if (repository / ".gated").exists():
                return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
            if not path.is_file():
                code = "EntryNotFound" if path.parent.is_dir() else "RepoNotFound"
                return self.answer(404, b"", {"X-Error-Code": code, "X-Repo-Commit": COMMIT})
            body = path.read_bytes()
            etag = hashlib.sha256(body).hexdigest()
            self.answer(200, body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        with at(f"http://127.0.0.1:{server.server_port}", cache):
            yield asked
        server.shutdown()


@contextlib.contextmanager
def at(address: str, cache: Path) -> Iterator[None]:
    """huggingface_hub as HF_ENDPOINT and HF_HUB_CACHE would have it, had they been set before it was imported."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", address)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield
