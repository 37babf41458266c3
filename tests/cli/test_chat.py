"""`sample.py --chat`: a conversation on a terminal or through a pipe, by a model that knows its answers."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from nanogpt_jax.__main__ import run as nanogpt_jax
from nanogpt_jax.cli.chat import History, template_for
from nanogpt_jax.cli.streaming import Writer
from nanogpt_jax.cli.text_settings import SampleSettings
from nanogpt_jax.cli.texts import chat_text, sample_text
from nanogpt_jax.core import sampling
from nanogpt_jax.data.chat import TEMPLATES, encoded
from nanogpt_jax.data.hf_tokenizer import HFTokenizer
from nanogpt_jax.data.tasks import prepare_examples
from nanogpt_jax.data.tokenizer import BPETokenizer, CharTokenizer, Tokenizer
from nanogpt_jax.weights.loading import open_weights
from tests.helpers.chats import BRACKETS, KNOWN, messages, tune, write_chats
from tests.helpers.commands import HANGS, ROOT, Run, awaited, command
from tests.helpers.prepared import tokens
from tests.helpers.qwen import qwen
from tests.helpers.refusals import refusal
from tests.helpers.terminal import keyboard

ABC = KNOWN["abc?"]
LETTERS = CharTokenizer.from_text("()<>[]?|" + ABC)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tune(tmp_path_factory.mktemp("chats"))


class Talk(NamedTuple):
    """What came of a conversation in this process."""

    answers: list[str]
    err: str


@pytest.fixture
def talk(tuned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Talk]:
    def held(said: str, *flags: str) -> Talk:
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        assert nanogpt_jax(["sample", "--chat", f"--out_dir={tuned}", "--accelerator=cpu", *flags]) == 0
        printed = capsys.readouterr()
        assert printed.out.endswith("\n")
        return Talk(printed.out.split("\n")[:-1], printed.err)

    return held


def test_a_script_gets_a_line_for_each_of_its_own(tuned: Path) -> None:
    said = "red?\n\n  \nsky?\r\nabc?"
    done = command("sample.py", "--chat", f"--out_dir={tuned}", "--temperature=0", said=said)
    assert done == (0, f"apple\nblue\n{ABC}\n", "")


def test_a_conversation_outgrows_the_block_and_goes_on(talk: Callable[..., Talk]) -> None:
    asked = ["red?", "abc?", "sky?", "abc?", "one?", "moo?", "abc?", "abc?", "red?"]
    for flags in ((), ("--system=hey",)):
        got = talk("\n".join(asked), "--temperature=0", *flags)
        assert got.answers == [KNOWN[question] for question in asked]
        assert got.err == "from here on the oldest messages are dropped, to stay in the block\n"
    assert talk("red?\nsky?", "--temperature=0").err == ""


def test_an_answer_may_have_lines_though_a_line_end_ends_the_conversations(talk: Callable[..., Talk]) -> None:
    assert talk("who?\nred?\nwho?\n", "--temperature=0").answers == ["he", "she", "apple", "he", "she"]


def test_programs_are_compiled_for_powers_of_two_and_not_for_every_message(talk: Callable[..., Talk]) -> None:
    sampling.extend.clear_cache()
    asked = "".join(f"{'o' * length}?\n" for length in range(1, 20))
    assert len(talk(asked, "--max_new_tokens=12").answers) == 19
    assert sampling.extend._cache_size() <= 4  # buffers of 16, 32, 64 and 128


def test_answers_are_drawn_under_the_seed_and_the_turn(talk: Callable[..., Talk]) -> None:
    wild = ("--temperature=4", "--max_new_tokens=12", "--top_k=none")
    first, again, other = (talk("red?\nred?\nred?\n", *wild, f"--seed={seed}").answers for seed in (1, 1, 2))
    assert first == again and not set(first) & set(other)
    # Where the block has no room for an exchange, what is read is the same in each turn.
    same = talk("red?\nred?\nred?\n", *wild, f"--system={'a' * 58}")
    assert len(set(same.answers)) == 3 and "dropped" in same.err


def test_the_first_answer_is_the_text_that_is_drawn_from_its_prompt(
    talk: Callable[..., Talk], tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for quantize in ("none", "int8"):
        how = {"temperature": 2.0, "top_p": 0.9, "top_k": 20, "seed": 3, "quantize": quantize}
        sample_text(SampleSettings(out_dir=str(tuned), start="<red?>[", num_samples=1, max_new_tokens=30, **how))
        text = capsys.readouterr().out.removeprefix("<red?>[").split("]")[0]
        got = talk("red?", "--max_new_tokens=30", *(f"--{name}={value}" for name, value in how.items()))
        assert got.answers[0] == text.removesuffix("\n---------------\n")


def test_an_answer_is_as_long_as_is_asked_for_or_the_block_has_room_for(
    talk: Callable[..., Talk], tmp_path: Path
) -> None:
    assert talk("abc?\nred?\n", "--temperature=0", "--max_new_tokens=3").answers == ["abc", "app"]
    endless = {"user": {"before": "<", "after": ">"}, "assistant": {"before": "[", "after": "("}}
    (tmp_path / "endless.json").write_text(json.dumps(endless))
    got = talk("red?\n", f"--template={tmp_path / 'endless.json'}", "--temperature=0")
    whole = "\n".join(got.answers)
    assert whole.startswith("apple]") and len("<red?>[" + whole) == 80


def test_characters_that_the_vocabulary_lacks(talk: Callable[..., Talk]) -> None:
    assert "'R' (U+0052)" in refusal(talk, "Rred?\n")
    assert "'\\udce9'" in refusal(talk, "red\udce9?\n")
    assert talk("Rred?\nÄred\udce9?\n", "--unknown=drop", "--temperature=0").answers == ["apple"] * 2


def test_a_message_that_does_not_fit_is_refused(talk: Callable[..., Talk]) -> None:
    long = "o" * 40
    assert refusal(talk, f"{long}\n") == (
        "the message takes 43 tokens, and block_size=80 has room for 40 beside 40 of an answer; shorten it"
    )
    assert "room for 69 beside 5 of an answer and what comes first; shorten it" in refusal(
        talk, f"{'o' * 70}\n", "--max_new_tokens=5", "--system=moo?"
    )
    assert len(talk(f"{long}\n", "--max_new_tokens=5").answers) == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"chat": True, "num_samples": 2}, "num_samples=2 is for texts, and a chat is one; leave it out"),
        ({"chat": True, "start": "red?"}, "start=red? is for texts, and a chat begins with what you say; leave it out"),
        ({"chat": True, "past_block": "rolling"}, "past_block=rolling is for texts, and a chat stays in the block"),
        ({"template": "plain"}, "template=plain is for a conversation; add --chat"),
        ({"system": "Be short."}, "system=Be short. is for a conversation; add --chat"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict, says: str) -> None:
    assert refusal(SampleSettings, **settings).startswith(says)
    SampleSettings(chat=True, num_samples=1)


def test_a_model_brings_its_template_or_is_told_one(
    tuned: Path, trained: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    brought = open_weights(str(tuned)).template
    assert template_for(None, brought, LETTERS) == BRACKETS
    assert template_for("plain", brought, LETTERS) == TEMPLATES["plain"]
    assert refusal(chat_text, SampleSettings(chat=True, out_dir=str(trained.out_dir))) == (
        "the model was not tuned on chats, and does not say what stands around messages; name that with "
        "--template=plain, chatml or a JSON file"
    )
    assert capsys.readouterr().err == ""
    assert template_for(None, None, HFTokenizer(qwen(300)[0])) == TEMPLATES["chatml"]
    assert capsys.readouterr().err == "template: chatml, since the vocabulary has <|im_start|> and <|im_end|>\n"
    for without in (LETTERS, BPETokenizer([]), CharTokenizer.from_text("<|im_start|><|im_end|>")):
        assert "was not tuned on chats" in refusal(template_for, None, None, without)
    del brought["system"]
    (tmp_path / "own.json").write_text(json.dumps(brought))
    asked = SampleSettings(chat=True, out_dir=str(tuned), template=str(tmp_path / "own.json"), system="hey")
    assert refusal(chat_text, asked) == "system=hey is a message of a role that the template lacks; leave it out"


TOKENIZERS = {
    "char": lambda text: CharTokenizer.from_text(text),
    "bpe": lambda text: BPETokenizer.train([text] * 3, 300),
    "qwen": lambda text: HFTokenizer(qwen(2000)[0], "<|endoftext|>"),
}


@pytest.mark.parametrize(("kind", "name"), [("char", "plain"), ("bpe", "plain"), ("bpe", "chatml"), ("qwen", "chatml")])
def test_the_tokens_of_a_prompt_are_those_of_training(kind: str, name: str, tmp_path: Path) -> None:
    chat = messages(["red?", "abc?", "sky?"], system="be <|im_end|> short ")
    chat[1]["content"] = " what <|endoftext|> of <|im_start|>user red?  "
    template = TEMPLATES[name]
    text = "".join(span.text for span in template.spans(chat)) + "\n"
    tokenizer: Tokenizer = TOKENIZERS[kind](text)
    path = write_chats(tmp_path / "chats.jsonl", [chat] * 2)
    prepare_examples([path], tmp_path / "set", "chat", tokenizer, template=template)
    seen = tokens(tmp_path / "set" / "train.bin").tolist()
    history = History(template, tokenizer, 1024, 100, chat[:1])
    for question, answer in zip(chat[1::2], chat[2::2], strict=True):
        prompt, room = history.ask(question["content"])
        drawn = tokenizer.encode_ordinary(answer["content"]).astype(np.int32)
        assert [*prompt, *drawn, template.stop(tokenizer)] == seen[: len(prompt) + len(drawn) + 1] and room == 100
        history.answered(drawn)
    whole, _ = history.ask("red?")
    end = seen[len(seen) - (name == "chatml") :]  # ChatML ends a turn, and the data set the text after that
    assert [*whole[: len(seen) - len(end)], *end] == seen


def test_of_what_was_drawn_no_token_becomes_another() -> None:
    tokenizer = BPETokenizer.train(["abab abab abab"] * 3, 260)
    drawn = np.array([ord("a"), ord("b"), ord("a"), ord("b"), 0xC3])  # the last one is half of a character
    assert len(tokenizer.encode("abab")) < 4
    history = History(TEMPLATES["plain"], tokenizer, 200, 50, [])
    first, _ = history.ask("x")
    history.answered(drawn)
    second, _ = history.ask("y")
    assert second[: len(first) + 5].tolist() == [*first, *drawn]


def test_the_oldest_exchanges_go_whole_and_the_system_message_stays() -> None:
    history = History(BRACKETS, LETTERS, 40, 10, messages([], "hey"))
    spans = BRACKETS.spans
    for question in ("red?", "sky?", "one?"):
        prompt, room = history.ask(question)
        history.answered(LETTERS.encode(KNOWN[question]))
    assert LETTERS.decode(prompt) == "(hey)<sky?>[blue]<one?>[" and (room, history.dropped) == (10, 1)
    refusal(history.ask, "o" * 30)
    assert LETTERS.decode(history.ask("red?")[0]) == "(hey)<one?>[two]<red?>["
    assert LETTERS.decode(history.ask("o" * 22)[0]) == f"(hey)<{'o' * 22}>[" and history.dropped == 3
    half = History(BRACKETS, LETTERS, 40, 500, [])
    assert [len(half.ask("o" * 17)[0]), half.ask("o" * 17)[1]] == [20, 20] and half.ask("o")[1] == 36
    assert encoded(spans([]), LETTERS)[0].size == 0


def test_a_character_appears_once_it_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = BPETokenizer([])
    ids = tokenizer.encode("né日")
    write, shown = Writer(tokenizer), []
    for reach in range(1, len(ids)):
        write(ids[:reach])
        shown.append(capsys.readouterr().out)
    write.end("|")
    assert shown == ["n", "", "é", "", ""] and capsys.readouterr().out == "\ufffd|"


# The command, of which each answer waits after its first 16 tokens for a file or for a SIGINT.
CHILD = """
from nanogpt_jax.data import process; process.begin()
import os, pathlib, signal, sys, time
from nanogpt_jax.cli import entry, sample
from nanogpt_jax.core import sampling
os.close(os.open(os.ttyname(0), os.O_RDWR))  # its controlling terminal
may_go_on, prefill, extend = pathlib.Path(sys.argv.pop(1)), sampling.prefill, sampling.extend
pieces = []

def counted(*arguments):
    pieces.clear()
    return prefill(*arguments)

def waiting(*arguments):
    pieces.append(1)
    usual = signal.getsignal(signal.SIGINT)
    while len(pieces) > 1 and not may_go_on.exists() and signal.getsignal(signal.SIGINT) is usual:
        time.sleep(0.01)
    return extend(*arguments)

sampling.prefill, sampling.extend = counted, waiting
raise SystemExit(entry.run(sample.main))
"""


class Window:
    """A terminal in which a conversation has begun."""

    def __init__(self, tuned: Path, may_go_on: Path, master: int, slave: int, received: bytearray) -> None:
        self.may_go_on, self._master, self._slave, self._received = may_go_on, master, slave, received
        self.modes = termios.tcgetattr(slave)
        argv = [sys.executable, "-c", CHILD, str(may_go_on), "--chat", f"--out_dir={tuned}", "--temperature=0"]
        self.process = subprocess.Popen(
            argv, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, start_new_session=True,
            env={**os.environ, "TERM": "dumb"},
        )  # fmt: skip
        self._seen = 0

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def see(self, what: str) -> str:
        """Wait for what is shown after what has been seen; all up to its end, with the echo of what was typed."""
        awaited(lambda: self._received.find(what.encode(), self._seen) >= 0 or self.process.poll() is not None)
        assert what.encode() in self._received[self._seen :], bytes(self._received)
        start = self._seen
        self._seen = self._received.index(what.encode(), start) + len(what)
        return self._received[start : self._seen].decode().replace("\r", "")

    def ended(self) -> tuple[int, bool]:
        """The status, and whether the terminal is as it was."""
        status = self.process.wait(timeout=HANGS)
        return status, termios.tcgetattr(self._slave) == self.modes


@pytest.fixture
def window(tuned: Path, tmp_path: Path) -> Iterator[Window]:
    with keyboard() as (master, slave, received):
        opened = Window(tuned, tmp_path / "go on", master, slave, received)
        opened.see("> ")
        yield opened
        opened.process.kill()
        opened.process.wait()


def test_an_answer_appears_while_it_is_made_and_the_end_of_input_is_the_end(window: Window) -> None:
    window.type("abc?\n")
    assert window.see(ABC[:16]) == f"abc?\n{ABC[:16]}"  # and the rest can't be there yet
    window.may_go_on.touch()
    assert window.see("> ") == f"{ABC[16:]}\n> "
    window.type(f"{'o' * 60}\n")
    assert "error: the message takes 63 tokens" in window.see("> ")
    window.type("rex\bd?\n")  # a line that is edited
    window.see("apple")
    window.see("> ")
    window.type("\x04")
    assert window.ended() == (0, True)


def test_ctrl_c_ends_an_answer_and_at_the_prompt_the_program(window: Window) -> None:
    window.type("abc?\n")
    window.see(ABC[:16])
    window.type("\x03")
    rest = window.see("> ").replace("^C", "")
    assert rest in ("\n> ", f"{ABC[16:]}\n> ")  # the piece under way is shown whole
    window.type("red?\n")
    assert window.see("> ").endswith("apple\n> ")
    window.type("\x03")
    assert window.ended() == (130, True)


@pytest.mark.parametrize("answering", [False, True])
def test_sigterm_ends_at_once(window: Window, answering: bool) -> None:
    if answering:
        window.type("abc?\n")
        window.see(ABC[:16])
    os.kill(window.process.pid, signal.SIGTERM)
    assert window.ended() == (143, True)
