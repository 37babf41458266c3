"""The lens: its numbers are the model's own, and the page shows them in a browser, without a network."""

import base64
import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanogpt_jax.cli import sample, train
from nanogpt_jax.core import activations, ops
from nanogpt_jax.core.config import GPTConfig
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.model import GPT, Bigram, CausalSelfAttention, Linear
from nanogpt_jax.core.train_step import Batch, init_params, loss_fn
from nanogpt_jax.data.tokenizer import BPETokenizer, CharTokenizer
from nanogpt_jax.lens import command as lens
from nanogpt_jax.lens.page import document, packed, page
from tests.helpers.browser import CHROMIUM, chromium
from tests.helpers.commands import HANGS, ROOT, command
from tests.helpers.tiny import TINY, prepare_tiny
from tests.helpers.twins import fresh

CONFIG = GPTConfig(block_size=24, vocab_size=30, n_layer=3, n_head=2, n_embd=16)
TOKENS = np.arange(20, dtype=np.int32) * 7 % CONFIG.vocab_size


@pytest.fixture(scope="module", params=["gpt", "relatives of GPT-2", "bigram"])
def model_and_params(request):
    other = dataclasses.replace(CONFIG, bias=False, qkv_bias=True, tie_word_embeddings=False, lm_head_bias=True)
    model = {"gpt": GPT(CONFIG), "bigram": Bigram(CONFIG)}.get(request.param) or GPT(other)
    return model, fresh(model)


def test_the_last_layer_predicts_what_the_model_predicts(model_and_params):
    model, params = model_and_params
    logits = jax.jit(lambda: model.apply({"params": params}, TOKENS[None])[0])()
    read = activations.read(model, params, TOKENS)
    np.testing.assert_allclose(read.logits, logits, atol=1e-5)
    predicted = activations.predictions(read.logits, TOKENS, CONFIG.vocab_size, CONFIG.vocab_size)
    np.testing.assert_allclose(predicted.probabilities.sum(axis=-1), 1, atol=1e-5)
    in_order = np.take_along_axis(predicted.probabilities, np.argsort(predicted.candidates), axis=-1)
    np.testing.assert_allclose(in_order, jax.nn.softmax(logits), atol=1e-6)
    if isinstance(model, GPT):
        layers = activations.layer_predictions(model, params, read.streams, TOKENS, 5, CONFIG.vocab_size)
        assert layers.candidates.shape == (CONFIG.n_layer + 1, len(TOKENS), 5)
        np.testing.assert_allclose(layers.probabilities[-1], predicted.probabilities[:, :5], atol=1e-6)
        np.testing.assert_allclose(layers.losses[-1], predicted.losses, atol=1e-5)


def test_an_earlier_layer_predicts_what_a_model_that_ends_there_would(model_and_params):
    model, params = model_and_params
    if isinstance(model, Bigram):
        assert activations.read(model, params, TOKENS).streams.shape[1:] == (len(TOKENS), 0)
        return
    layers = activations.layer_predictions(
        model, params, activations.read(model, params, TOKENS).streams, TOKENS, 1, CONFIG.vocab_size
    )
    shorter = model.clone(config=dataclasses.replace(model.config, n_layer=2))
    cut = {name: value for name, value in params.items() if name != "h_2"}
    logits = jax.jit(lambda: shorter.apply({"params": cut}, TOKENS[None])[0])()
    np.testing.assert_allclose(
        layers.losses[2], activations.predictions(logits, TOKENS, 1, CONFIG.vocab_size).losses, atol=1e-5
    )


def test_the_losses_are_those_of_training(model_and_params):
    model, params = model_and_params
    predicted = activations.predictions(activations.read(model, params, TOKENS).logits, TOKENS, 3, CONFIG.vocab_size)
    loss = jax.jit(lambda: loss_fn(model, params, Batch(TOKENS[None, :-1], TOKENS[None, 1:])))()
    assert float(predicted.losses.mean()) == pytest.approx(float(loss), abs=1e-5)
    table = np.argsort(np.argsort(-activations.read(model, params, TOKENS).logits))
    np.testing.assert_array_equal(predicted.ranks, table[np.arange(len(TOKENS) - 1), TOKENS[1:]])


def test_attention_is_what_the_model_attended_with():
    model = GPT(CONFIG)
    params = fresh(model)
    attention = activations.read(model, params, TOKENS).attention
    np.testing.assert_allclose(attention.sum(axis=-1), 1, atol=1e-5)
    assert not np.triu(attention, 1).any()

    @jax.jit
    def noted():
        return model.apply(
            {"params": params}, TOKENS[None], mutable=["intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, CausalSelfAttention) or module.name == "c_attn",
        )[1]["intermediates"]  # fmt: skip

    for layer, weights in enumerate(attention):
        block = noted()[f"h_{layer}"]["attn"]
        _, _, v = ops.split_heads(block["c_attn"]["__call__"][0], 1, CONFIG.n_head)
        proj = Linear(CONFIG.n_embd, CONFIG.bias)
        mixed = proj.apply({"params": params[f"h_{layer}"]["attn"]["c_proj"]}, ops.merge_heads(weights[None] @ v))
        np.testing.assert_allclose(mixed, block["__call__"][0][0], atol=1e-5)


def test_packed_attention_is_right_to_a_255th():
    attention = np.asarray(
        jax.nn.softmax(jnp.where(np.tri(9), 9 * jax.random.normal(jax.random.key(0), (2, 3, 9, 9)), -1e9))
    )
    bytes_ = np.frombuffer(packed(attention), np.uint8).reshape(2, 3, 45)
    unpacked = np.zeros_like(attention)
    unpacked[..., *np.tril_indices(9)] = (bytes_ / 255) ** 2
    assert np.abs(unpacked - attention).max() <= 1 / 255


def data_of(html):
    """The numbers laid into a page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])


def findings(tokens, given, vocab_size, tokenizer, **shape):
    model = GPT(GPTConfig(vocab_size=vocab_size, **{**dict(n_layer=1, n_head=1, n_embd=8, block_size=64), **shape}))
    return lens.findings(model, fresh(model), np.asarray(tokens, np.int32), given, tokenizer)


def test_tokens_that_are_parts_of_characters_are_shown_as_bytes():
    tokenizer = BPETokenizer(["a b"])
    text = "ab é<|endoftext|>"
    # A table that is padded, as nanoGPT pads GPT-2's: tokens that mean nothing are no candidates.
    found = document(findings(tokenizer.encode(text), 2, 300, tokenizer), tokenizer)
    assert [found["pieces"][token] for token in found["tokens"]] == ["ab", " ", [0xC3], [0xA9], "<|endoftext|>"]
    assert found["unit"] == "token" and found["vocab_size"] == 258
    assert max(map(max, found["candidates"])) < 258


# The command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that has hardly begun."""
    folder = tmp_path_factory.mktemp("lens")
    flags = (f"--data_dir={prepare_tiny(folder)}", f"--out_dir={folder / 'out'}", "--max_iters=1")
    assert train.main([*TINY, *flags, "--block_size=32"]) == 0
    return folder / "out"


def test_the_command_reads_what_sample_py_writes(run, tmp_path, capsys):
    flags = [f"--out_dir={run}", "--start=to be", "--seed=3", "--accelerator=cpu"]
    html = tmp_path / "new" / "lens.html"
    capsys.readouterr()
    assert lens.main([*flags, f"--html={html}"]) == 0
    assert capsys.readouterr().out == f"{html}: 0.0 MB; open it in a browser\n"
    sample.main([*flags, "--num_samples=1", "--max_new_tokens=27"])
    found = data_of(html.read_text(encoding="utf-8"))
    assert "".join(found["pieces"][str(token)] for token in found["tokens"]) + "\n" == capsys.readouterr().out[:33]
    assert (found["given"], len(found["tokens"]), len(found["layers"]), found["heads"]) == (5, 32, 2, 2)


def test_a_text_can_be_read_as_it_is(run):
    found = data_of(lens.rendered(lens.LensSettings(out_dir=str(run), start="not", max_new_tokens=0)))
    assert (found["given"], len(found["losses"])) == (3, 2)


def test_a_bigram_has_predictions_and_no_layers(tmp_path):
    flags = (f"--data_dir={prepare_tiny(tmp_path)}", f"--out_dir={tmp_path / 'out'}", "--max_iters=1", "--eval_iters=1")
    assert train.main(["bigram", "--dataset=tiny", *flags]) == 0
    found = data_of(lens.rendered(lens.LensSettings(out_dir=str(tmp_path / "out"), start="to be")))
    assert (len(found["tokens"]), found["layers"], found["attention"]) == (200, [], {"layers": 0, "bytes": ""})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--start="], "the prompt is empty and there is nothing to read; give at least one token"),
        ([f"--start={'to be ' * 6}"], "start has 36 tokens and the model reads block_size=32 at once; shorten it by 4"),
        (
            ["--start=to be", "--max_new_tokens=500"],
            "max_new_tokens=500 after the 5 of start are more than the block_size=32 that the model reads at once; "
            "choose at most 27",
        ),
        (["--max_new_tokens=-1"], "max_new_tokens=-1 is smaller than 0; choose at least 0"),
        (["--start=Z"], "the character 'Z' (U+005A) at position 0 is not among"),
        (["--start=to", "--html=."], "html='.' is a folder; name a file"),
        (["--start=to", "--html=/dev/null/lens.html"], "html=/dev/null/lens.html cannot be written ("),
        (["--temperature=-1"], "temperature=-1.0 is not a number of at least 0"),
        (["--htlm=x"], "there is no setting --htlm; did you mean --html?"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(run, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        lens.main([f"--out_dir={run}", "--accelerator=cpu", *flags])
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_ends_the_process_with_status_2(tmp_path):
    done = command("nanogpt_jax/lens/__main__.py", "--out_dir=nowhere", cwd=tmp_path)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error: nowhere holds no run") and done.err.count("\n") == 1


def test_damaged_weights_are_named():
    model = GPT(CONFIG)
    spoilt = jax.tree.map(lambda p: p * jnp.nan, init_params(model, 0))
    with pytest.raises(UserError, match="not finite numbers"):
        lens.findings(model, spoilt, TOKENS, 1, CharTokenizer.from_text("a"))


def test_the_wheel_holds_the_page(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "nanogpt_jax", tmp_path / "nanogpt_jax", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", tmp_path]
    subprocess.run(build, check=True, capture_output=True, timeout=HANGS)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "installed", "zip")
    for name in ("lens.html", "lens.css", "lens.js"):
        assert (tmp_path / "installed" / "nanogpt_jax" / "page" / name).read_bytes()


# The page, in a browser. Playwright keeps an event loop running in this thread for as long as the browser is open, so
# these come last here, and make their pages without checkpoints, whose library wants the loop for itself.

SIZE = 200
CHARACTERS = CharTokenizer(
    "\n !',-.:;?" + "".join(map(chr, range(ord("A"), ord("Z") + 1))) + "abcdefghijklmnopqrstuvwxyz"
)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: the lens page was not tried in a browser")
    with chromium() as started:
        yield started


@pytest.fixture
def complaints():
    """What pages say on the console, ask of the network, or pop up: nothing, when a test ends."""
    heard = []
    yield heard
    assert heard == []


@pytest.fixture
def opened(browser, tmp_path, complaints):
    """Opens a page from a file, offline."""
    contexts = []

    def open_page(html, **options):
        file = tmp_path / "lens.html"
        file.write_text(html, encoding="utf-8")
        contexts.append(browser.new_context(offline=True, **{"viewport": {"width": 1280, "height": 900}, **options}))
        contexts[-1].set_default_timeout(10_000)
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: (complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
        tab.on("request", lambda request: request.url == file.as_uri() or complaints.append(request.url))
        tab.goto(file.as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def large():
    """The page of a 6-layer, 6-head model over 200 characters, and the numbers it was made of."""
    model = GPT(GPTConfig(SIZE, CHARACTERS.vocab_size, n_layer=6, n_head=6, n_embd=48))
    tokens = np.asarray(jax.random.randint(jax.random.key(1), (SIZE,), 0, CHARACTERS.vocab_size), np.int32)
    params = fresh(model)
    found = lens.findings(model, params, tokens, 6, CHARACTERS)
    logits = jax.jit(lambda: model.apply({"params": params}, tokens[None])[0])()
    return SimpleNamespace(
        html=page(found, CHARACTERS, "a model", ["6 layers"]), tokens=tokens, found=found,
        probabilities=np.asarray(jax.nn.softmax(logits)),
    )  # fmt: skip


def test_the_page_of_a_long_text_is_small(large):
    assert len(large.html.encode()) < 3e6


def sign(token):
    return CHARACTERS.itos[token].replace("\n", "↵").replace(" ", "␣")


def near(shown, p):
    """Whether a share is the probability, to the digits it is shown with."""
    if shown == "<0.01%":
        return p < 0.00011
    digits = len(shown.rstrip("%").partition(".")[2])
    return digits >= 1 and abs(float(shown.rstrip("%")) - 100 * p) < 0.51 * 10**-digits


def candidates_of(tab):
    return tab.eval_on_selector_all(
        "#candidates li", "rows => rows.map(row => [...row.querySelectorAll('.glyph, .share')].map(s => s.textContent))"
    )


def test_pointing_at_a_character_shows_how_it_was_predicted(large, opened):
    tab = opened(large.html)
    for i in (1, 77, SIZE - 1, SIZE):
        tab.hover(f"#at-{i}")
        expected = large.probabilities[i - 1]
        shown = candidates_of(tab)
        assert len(shown) == lens.CANDIDATES
        for (glyph, share), token in zip(shown, np.argsort(-expected), strict=False):
            assert glyph == sign(token) and near(share, expected[token]), (i, glyph, share, expected[token])
        rows = tab.eval_on_selector_all(
            "#layers tbody tr", "rows => rows.map(row => [...row.children].map(cell => cell.textContent))"
        )
        assert [row[0] for row in rows] == ["embedding", *(f"layer {n}" for n in range(1, 7))]
        for row, candidates, probabilities in zip(
            rows, large.found.layers.candidates, large.found.layers.probabilities, strict=True
        ):
            for cell, token, p in zip(row[1:-1], candidates[i - 1], probabilities[i - 1], strict=True):
                assert cell[0] == sign(token) and near(cell[1:], p)
        if i < SIZE:
            p = float(expected[large.tokens[i]])
            label = tab.get_attribute(f"#at-{i}", "aria-label")
            spoken = {"↵": "line end", "␣": "space"}.get(sign(large.tokens[i]), sign(large.tokens[i]))
            assert label.startswith(f"character {i + 1} of {SIZE}, {spoken}, probability ")
            assert float(label.split()[-1]) == pytest.approx(-math.log(p), abs=0.006)
            came = tab.inner_text("#came")
            assert came.startswith(f"{sign(large.tokens[i])} came") and f"rank {(expected > p).sum() + 1}," in came
            assert near(rows[-1][-1], p)


ALPHAS = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 == 3)"
BARS = "all => all.map(option => Number(option.style.getPropertyValue('--attention')))"


def of_row(large, row):
    """The weights of each head at one position."""
    return large.found.attention[:, :, row].reshape(36, SIZE)


def test_every_head_shows_its_row_and_the_chosen_one_its_map(large, opened):
    tab = opened(large.html)
    row = 120
    tab.hover(f"#at-{row + 1}")
    shown = tab.eval_on_selector_all("#heads .strip", f"all => all.map({ALPHAS})")
    places = np.arange(SIZE) * 64 // SIZE  # three or four characters share a pixel, and the most read of them is seen
    expected = [[weights[places == place].max() for place in range(64)] for weights in of_row(large, row)]
    np.testing.assert_allclose((np.array(shown) / 255) ** 2, expected, atol=1 / 255)
    below_text = tab.eval_on_selector_all("#text > *", BARS)
    np.testing.assert_allclose(below_text[:SIZE], np.sqrt(of_row(large, row)[30]), atol=0.5 / 16 + 1 / 255)
    tab.hover("#head-2-3")
    assert tab.eval_on_selector_all("#text > *", BARS) != below_text
    assert tab.inner_text("#head-title") == "Layer 3, head 4"
    whole = tab.eval_on_selector("#map canvas", ALPHAS)
    np.testing.assert_allclose((np.reshape(whole, (SIZE, SIZE)) / 255) ** 2, large.found.attention[2, 3], atol=1 / 255)
    tab.mouse.move(1, 1)
    assert tab.inner_text("#head-title") == "Layer 6, head 1"


def chosen(tab, what):
    return tab.get_attribute(f"{what} [aria-selected=true]", "id")


def test_the_page_works_by_keyboard(large, opened):
    tab = opened(large.html)
    assert chosen(tab, "#text") == "at-199"
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "text"
    assert tab.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    places = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft", "Home", "ArrowLeft", "End"):
        tab.keyboard.press(key)
        places.append(chosen(tab, "#text"))
    assert places == ["at-200", "at-200", "at-199", "at-198", "at-1", "at-1", "at-200"]
    assert tab.get_attribute("#text", "aria-activedescendant") == "at-200"
    tops = [tab.locator(f"#{chosen(tab, '#text')}").bounding_box()["y"]]
    for key in ("ArrowUp", "ArrowUp", "ArrowDown"):
        tab.keyboard.press(key)
        tops.append(tab.locator(f"#{chosen(tab, '#text')}").bounding_box()["y"])
    assert tops[0] > tops[1] > tops[2] and tops[3] == tops[1]
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "heads"
    places = []
    for key in ("ArrowUp", "ArrowRight", "End", "ArrowRight", "Home", "ArrowDown", "ArrowDown"):
        tab.keyboard.press(key)
        places.append(chosen(tab, "#heads"))
    assert places == ["head-4-0", "head-4-1", "head-4-5", "head-4-5", "head-4-0", "head-5-0", "head-5-0"]


def test_a_click_stays_and_pointing_does_not(large, opened):
    tab = opened(large.html)
    tab.click("#at-50")
    tab.hover("#at-60")
    assert chosen(tab, "#text") == "at-60"
    tab.mouse.move(1, 1)
    assert chosen(tab, "#text") == "at-50"
    tab.hover("#map", position={"x": 5, "y": 5})
    assert int(chosen(tab, "#text").removeprefix("at-")) < 10


# The contrast of every piece of text with what lies behind it (WCAG 2.2, relative luminance). The grounds of the text's
# characters lie on a line from the paper to the hottest colour: its ends are what they are held to.
CONTRASTS = """() => {
  const pixel = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const over = (colours) => {
    pixel.clearRect(0, 0, 1, 1);
    for (const colour of colours) { pixel.fillStyle = colour; pixel.fillRect(0, 0, 1, 1); }
    return [...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => rgb
    .map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const style = getComputedStyle(document.documentElement);
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    if (["SCRIPT", "NOSCRIPT"].includes(element.tagName) || !element.checkVisibility()) continue;
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    const grounds = [];
    for (let e = element; e; e = e.parentElement) grounds.unshift(getComputedStyle(e).backgroundColor);
    const own = getComputedStyle(element).color;
    const behind = element.role === "option" ? [grounds, [style.getPropertyValue("--hot")]] : [grounds];
    for (const ground of behind) {
      const contrast = ratio(luminance(over([...ground, own])), luminance(over(ground)));
      found.push([element.textContent.slice(0, 20), contrast]);
    }
  }
  return found;
}"""


def test_all_text_can_be_read_in_light_and_dark(large, opened):
    tab = opened(large.html)
    tab.hover("#at-40")
    for scheme, is_dark in (("light", False), ("dark", True)):
        tab.emulate_media(color_scheme=scheme)
        found = tab.evaluate(CONTRASTS)
        assert len(found) > 2 * SIZE
        assert [(scheme, text, ratio) for text, ratio in found if ratio < 4.5] == []
        paper = tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper))) < 300) == is_dark


SPILLED = """() => [...document.querySelectorAll("main *")]
  .filter((e) => e.getBoundingClientRect().right > e.closest("section, div").getBoundingClientRect().right + 1)
  .filter((e) => !e.closest("#heads, #ticks"))
  .map((e) => `${e.tagName} ${e.className} ${e.textContent.slice(0, 20)}`)"""


def test_the_page_fits_narrow_and_wide_and_with_large_text(large, opened):
    tab = opened(large.html)
    for width, scale in ((320, 100), (390, 200), (1280, 200), (1920, 100)):
        tab.set_viewport_size({"width": width, "height": 800})
        tab.evaluate("scale => { document.documentElement.style.fontSize = `${scale}%` }", scale)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, (width, scale)
        assert tab.evaluate(SPILLED) == [], (width, scale)


def test_a_hostile_text_is_only_text(opened):
    text = "</script><script>alert(1)</script><!--<script><img src=x onerror=alert(2)>{{data}}"
    tokenizer = CharTokenizer.from_text(text)
    found = findings(tokenizer.encode(text), 3, tokenizer.vocab_size, tokenizer, block_size=128)
    tab = opened(page(found, tokenizer, text, [text]))
    assert tab.text_content("#text") == text + "?"
    assert text in tab.title() and text in tab.inner_text("#facts")
    assert tab.evaluate("[document.scripts.length, document.images.length]") == [2, 0]


def test_the_page_may_ask_for_nothing_and_run_nothing_else(large, opened, complaints):
    smuggled = "<script>document.title = 'run'</script><img src='https://127.0.0.1/x.png'></body>"
    tab = opened(large.html.replace("</body>", smuggled))
    assert tab.title() == "Lens: a model"
    blocked = [complaint for complaint in complaints if "violates the following Content Security Policy" in complaint]
    assert len(blocked) == 2
    complaints.clear()


def test_a_bigrams_page_says_what_it_has_not(opened):
    tokenizer = CharTokenizer.from_text("ab\n")
    model = Bigram(GPTConfig(vocab_size=3, block_size=8))
    found = lens.findings(model, fresh(model), np.array([1, 2, 0, 1], np.int32), 1, tokenizer)
    tab = opened(page(found, tokenizer, "a table", []))
    assert len(candidates_of(tab)) == 3
    assert "it has no layers and no attention to show" in tab.inner_text("#bare")
    assert not tab.is_visible("#attention") and not tab.is_visible("#layers")


def test_bytes_and_long_tokens_are_shown(opened):
    tokenizer = BPETokenizer(["a b"])
    found = findings(tokenizer.encode("ab\té\nab"), 2, 258, tokenizer)
    tab = opened(page(found, tokenizer, "bytes", []))
    assert tab.text_content("#text") == "ab⇥C3A9↵ab?"
    assert base64.b64decode(data_of(tab.content())["attention"]["bytes"])


def test_characters_that_leave_no_mark_are_shown(opened):
    text = "a\r\nb\x00c\xa0d\u200be\ufefff\x7fé日"
    tokenizer = CharTokenizer.from_text(text)
    tab = opened(page(findings(tokenizer.encode(text), 2, tokenizer.vocab_size, tokenizer), tokenizer, "text", []))
    assert tab.text_content("#text") == "a␍↵b␀cU+00A0dU+200BeU+FEFFfU+007Fé日?"
    assert "carriage return" in tab.get_attribute("#at-1", "aria-label")
