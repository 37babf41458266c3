"""What a data set says of itself: read with care, and refused where it says something else."""

from __future__ import annotations

import contextlib
import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.commands import to_prepare
from nanogpt_jax.data.prepare import prepare_text
from nanogpt_jax.data.prepared import load_meta
from tests.helpers.commands import ROOT
from tests.helpers.refusals import refusal

patient = settings(deadline=None, max_examples=25)


class TestMeta:
    def test_a_missing_set_names_the_command(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(ROOT)
        assert to_prepare(Path("data/shakespeare_char")) == "python data/shakespeare_char/prepare.py"
        message = refusal(load_meta, tmp_path / "mine")
        assert f"python data/prepare.py FILE... --name=mine --data_dir={tmp_path}" in message

    def test_the_command_works_from_any_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        message = refusal(load_meta, Path("data/shakespeare_char"))
        there = shlex.quote(f"{ROOT}/data/shakespeare_char/prepare.py")
        assert message.endswith(f"python {there} --data_dir=data")

    def test_pickles_are_not_read(self, tmp_path: Path) -> None:
        (tmp_path / "meta.pkl").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
        message = refusal(load_meta, tmp_path)
        assert "meta.pkl" in message and "data/prepare.py" in message

    @pytest.mark.parametrize(
        "data",
        [b"", b"{", b"\xff", b"[]", b"[" * 100_000, b'"meta"', b"NaN", b"1" * 5000, b"\xef\xbb\xbf{}", b"{}"],
    )
    def test_what_is_not_a_meta(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "meta.json").write_bytes(data)
        assert "prepare the data set again" in refusal(load_meta, tmp_path)

    @patient
    @given(
        key=st.sampled_from(["vocab_size", "dtype", "train_tokens", "val_tokens", "tokenizer"]),
        value=st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.none()),
    )
    def test_fields_of_the_wrong_kind(self, tmp_path_factory: pytest.TempPathFactory, key: str, value: object) -> None:
        folder = tmp_path_factory.getbasetemp() / "meta"
        folder.mkdir(exist_ok=True)
        good = {"vocab_size": 3, "dtype": "uint16", "train_tokens": 9, "val_tokens": 1, "tokenizer": {"type": "gpt2"}}
        (folder / "meta.json").write_text(json.dumps({**good, key: value}), "utf-8")
        with contextlib.suppress(UserError):
            loaded = getattr(load_meta(folder), key)
            assert key.endswith(("size", "tokens")) and type(loaded) is int and loaded == value > 0
        (folder / "meta.json").write_text(json.dumps({k: v for k, v in good.items() if k != key}), "utf-8")
        assert key in refusal(load_meta, folder)


@pytest.mark.parametrize("files", [{}, {"train": [], "val": ["v.bin"]}, {"train": ["../x.bin"], "val": ["v.bin"]}, [1]])
def test_shards_that_are_no_names_of_files_are_refused(tmp_path, files):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be" * 20)
    prepare_text([text], tmp_path / "set")
    path = tmp_path / "set" / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": files}))
    with pytest.raises(UserError, match="has files"):
        load_meta(tmp_path / "set")
