"""The lens page in a browser, without a network.

Pages are made without checkpoints here: Playwright keeps an event loop running in this thread for as long as the
browser is open, and the checkpoints' library wants the loop for itself.
"""

import base64
import math
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from nanogpt_jax.core.bigram import Bigram
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.data.tokenizer import BPETokenizer, CharTokenizer
from nanogpt_jax.lens import reading
from nanogpt_jax.lens.page import page
from tests.helpers.browser import CHROMIUM, chromium
from tests.helpers.lens import data_of, findings
from tests.helpers.twins import fresh

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
    found = reading.findings(model, params, tokens, 6, CHARACTERS)
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
        assert len(shown) == reading.CANDIDATES
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
    found = reading.findings(model, fresh(model), np.array([1, 2, 0, 1], np.int32), 1, tokenizer)
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
