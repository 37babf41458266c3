"""Preparing documents: their files, the token that ends each, and the draw of the validation set."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nanogpt_jax.data import prepare
from nanogpt_jax.data.prepare import prepare_documents
from nanogpt_jax.data.prepared import load_meta, load_tokenizer
from nanogpt_jax.data.sources import Documents
from tests.helpers.prepared import decoded, tokens
from tests.helpers.refusals import refusal


class TestDocuments:
    DOCUMENTS = tuple(f"Document {i}:\n<|endoftext|> 日本\n" for i in range(50))

    def test_each_document_ends_with_the_token(self, few_ranks: None, tmp_path: Path) -> None:
        summary = prepare_documents(iter(self.DOCUMENTS), tmp_path, val_fraction=0.2)
        tokenizer = load_tokenizer(load_meta(tmp_path).tokenizer)
        splits = {True: [], False: []}
        for i, document in enumerate(self.DOCUMENTS):
            splits[prepare.is_validation(2357, i, 0.2)] += [*document.encode(), tokenizer.eot_token]
        assert tokens(tmp_path / "train.bin").tolist() == splits[False]
        assert tokens(tmp_path / "val.bin").tolist() == splits[True]
        assert summary.length == 50 and "documents: 50" in str(summary)

    def test_gpt2_tokens(self, gpt2_ranks: dict[bytes, int], tmp_path: Path) -> None:
        prepare_documents(["hello world"] * 40, tmp_path, "gpt2", 0.2)
        assert tokens(tmp_path / "train.bin")[:6].tolist() == [31373, 995, 50256] * 2
        assert load_meta(tmp_path).vocab_size == 50_257

    def test_a_trained_bpe_goes_through_them_twice(self, tmp_path: Path) -> None:
        prepare_documents(self.DOCUMENTS, tmp_path, "bpe:300", 0.2)
        assert len(load_meta(tmp_path).tokenizer["merges"]) > 9
        assert decoded(tmp_path).count("Document") == 50
        with pytest.raises(TypeError):
            prepare_documents(iter(self.DOCUMENTS), tmp_path, "bpe:300", 0.2)

    def test_the_draw_is_a_fair_function_of_seed_and_index(self) -> None:
        drawn = [prepare.is_validation(1, i, 0.1) for i in range(10_000)]
        assert drawn == [prepare.is_validation(1, i, 0.1) for i in range(10_000)]
        assert drawn != [prepare.is_validation(2, i, 0.1) for i in range(10_000)]
        assert 900 < sum(drawn) < 1100
        assert all(prepare.is_validation(1, i, 0.2) for i, held in enumerate(drawn) if held), (
            "a larger fraction adds documents"
        )

    def test_what_cannot_be_prepared_leaves_nothing(self, few_ranks: None, tmp_path: Path) -> None:
        folder = tmp_path / "set"
        assert "too few documents for two splits (1)" in refusal(prepare_documents, self.DOCUMENTS[:1], folder)
        assert "too few documents for two splits (0)" in refusal(prepare_documents, [], folder)
        assert "document 7" in refusal(prepare_documents, [*"abcdefg", "\ud800"], folder, "gpt2", 0.5)
        assert not folder.exists()

    def test_text_and_jsonl_files(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"one\r\ntwo")
        (tmp_path / "b.jsonl").write_text('{"text": "three"}\n{"text": "caf\\u00e9", "url": "x"}\n', "utf-8")
        documents = Documents((tmp_path / "a.txt", tmp_path / "b.jsonl"))
        assert list(documents) == list(documents) == ["one\r\ntwo", "three", "café"]
        assert list(Documents(documents.paths, limit=2)) == ["one\r\ntwo", "three"]

    @pytest.mark.parametrize("line", ["", "{", "[]", '{"text": 1}', '{"body": "x"}', "[" * 100_000])
    def test_bad_lines_are_named(self, tmp_path: Path, line: str) -> None:
        (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n')
        assert "line 2" in refusal(list, Documents((tmp_path / "a.jsonl",)))

    def test_unknown_and_missing_files(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").touch()
        assert ".jsonl, .parquet, .txt" in refusal(Documents, (tmp_path / "a.csv",))
        assert "none.txt" in refusal(Documents, (tmp_path / "none.txt",))

    def test_parquet_files(self, tmp_path: Path) -> None:
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        texts = [*self.DOCUMENTS * 20, None, "last"]
        pq.write_table(pa.table({"text": texts, "id": range(len(texts))}), tmp_path / "a.parquet", row_group_size=300)
        assert list(Documents((tmp_path / "a.parquet",))) == [*self.DOCUMENTS * 20, "last"]
        pq.write_table(pa.table({"body": ["a"]}), tmp_path / "b.parquet")
        assert "no column `text`" in refusal(list, Documents((tmp_path / "b.parquet",)))
        pq.write_table(pa.table({"text": [1]}), tmp_path / "c.parquet")
        assert "int64" in refusal(list, Documents((tmp_path / "c.parquet",)))
        whole = (tmp_path / "a.parquet").read_bytes()
        for damaged in (b"", b"PAR1", whole[:-20], whole[:100] + bytes(500) + whole[600:]):
            (tmp_path / "d.parquet").write_bytes(damaged)
            assert "d.parquet" in refusal(list, Documents((tmp_path / "d.parquet",)))

    def test_without_the_extra_it_is_named(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        assert "pip install -e '.[datasets]'" in refusal(list, Documents())
        (tmp_path / "a.parquet").touch()
        assert "pip install -e '.[datasets]'" in refusal(list, Documents((tmp_path / "a.parquet",)))
