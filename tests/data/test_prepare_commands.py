"""The commands that prepare data, and the data sets that go by name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nanogpt_jax.cli import entry
from nanogpt_jax.cli import prepare as prepare_command
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data import assets, prepare
from nanogpt_jax.data.prepared import load_meta
from tests.helpers.commands import ROOT
from tests.helpers.prepared import PLAY, decoded
from tests.helpers.refusals import refusal


class TestShakespeare:
    @pytest.fixture(autouse=True)
    def a_shorter_play(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(assets, "tiny_shakespeare", lambda: PLAY)

    def test_characters(self, tmp_path: Path) -> None:
        folder = tmp_path / "data" / "shakespeare_char"
        prepare.KNOWN["shakespeare_char"](folder)
        assert (folder / "input.txt").read_bytes() == PLAY.encode()
        assert decoded(folder) == PLAY

    def test_gpt2(self, gpt2_ranks: dict[bytes, int], tmp_path: Path) -> None:
        prepare.KNOWN["shakespeare"](tmp_path)
        assert load_meta(tmp_path).tokenizer == {"type": "gpt2"}
        assert decoded(tmp_path) == PLAY

    def test_nothing_is_written_where_it_cannot_be_had(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def offline() -> dict[bytes, int]:
            raise UserError("offline")

        monkeypatch.setattr(assets, "gpt2_ranks", offline)
        refusal(prepare.KNOWN["shakespeare"], tmp_path / "set")
        assert not (tmp_path / "set").exists()


class TestCommands:
    @pytest.fixture
    def run(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple]:
        """Run a command line in this process: exit status, stdout, stderr."""

        def call(command: Callable[[list[str]], int], *arguments: str) -> tuple[int, str, str]:
            monkeypatch.setattr(sys, "argv", ["prepare.py", *arguments])
            status = entry.run(command)
            return status, *capsys.readouterr()

        return call

    def test_own_text(self, run: Callable[..., tuple], play: Path, tmp_path: Path) -> None:
        status, out, err = run(prepare_command.main, str(play), f"--data-dir={tmp_path}", "--val_fraction", "0.2")
        assert (status, err) == (0, "")
        assert re.search(r"^train has \d+ tokens\nval has \d+ tokens$", out, re.MULTILINE)
        assert decoded(tmp_path / "play") == PLAY
        status, _, _ = run(prepare_command.main, str(play), f"--data_dir={tmp_path}", "--name=b", "--tokenizer=bpe:280")
        assert status == 0 and decoded(tmp_path / "b") == PLAY

    def test_wrong_use_is_one_line_and_status_2(self, run: Callable[..., tuple], play: Path, tmp_path: Path) -> None:
        before = sorted(tmp_path.iterdir())
        inside = f"--data_dir={tmp_path}"
        for arguments in (
            [],
            [inside],
            [str(play), inside, "--bogus=1"],
            [str(play), inside, "--tok=char"],
            [str(play), inside, "--val_fraction=much"],
            [str(play), inside, "--tokenizer=word"],
            [str(tmp_path / "none.txt"), inside],
            *([str(play), inside, f"--name={name}"] for name in ("", ".", "..", "a/b", "/a", "a\\b", "a\nb")),
        ):
            status, out, err = run(prepare_command.main, *arguments)
            assert (status, out) == (2, "") and re.fullmatch(r"error: .+\n", err), (arguments, err)
        assert sorted(tmp_path.iterdir()) == before

    def test_ctrl_c_is_130(self, run: Callable[..., tuple], play: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(prepare, "census", interrupted)
        assert run(prepare_command.main, str(play), f"--data_dir={play.parent}")[0] == 130

    def test_openwebtext(self, few_ranks: None, run: Callable[..., tuple], tmp_path: Path) -> None:
        rows = "".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(100))
        (tmp_path / "a.jsonl").write_text(rows)
        arguments = [str(tmp_path / "a.jsonl"), f"--data_dir={tmp_path}", "--val_fraction=0.3"]
        status, out, _ = run(prepare_command.main_openwebtext, *arguments, "--num-docs=40")
        assert status == 0 and "documents: 40" in out
        assert decoded(tmp_path / "openwebtext").count("<|endoftext|>") == 40
        assert run(prepare_command.main_openwebtext, *arguments, "--num_docs=0")[0] == 2

    def test_the_scripts_write_where_they_are_told(self, play: Path) -> None:
        def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            command = [sys.executable, str(ROOT / "data" / name), *arguments]
            return subprocess.run(command, cwd=play.parent, env=environment, capture_output=True, text=True)

        done = script("prepare.py", "play.txt", "--data_dir=.")
        assert (done.returncode, done.stderr) == (0, "") and (play.parent / "play" / "meta.json").exists()
        for name in ("prepare.py", "shakespeare_char/prepare.py", "shakespeare/prepare.py", "openwebtext/prepare.py"):
            refused = script(name, "--bogus")
            assert refused.returncode == 2 and re.fullmatch(r"error: .+\n", refused.stderr)
