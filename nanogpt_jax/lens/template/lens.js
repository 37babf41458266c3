// Draws the page from the data in it. Position i of the text is shown with all that went into predicting it: row i - 1
// of every table, since that is where the model had read what comes before i, and nothing more.

const data = JSON.parse(document.getElementById("data").textContent);
const { tokens, heads, unit } = data;
const size = tokens.length;
const layers = data.attention.layers;
const weights = Uint8Array.from(atob(data.attention.bytes), (character) => character.charCodeAt(0));
const triangle = (size * (size + 1)) / 2;

const $ = (id) => document.getElementById(id);
const text = $("text");
const grid = $("heads");

// What stays when the pointer leaves, and what is shown now.
const kept = { position: Math.max(size - 1, 1), layer: Math.max(layers - 1, 0), head: 0 };
const shown = { ...kept };

// Words and numbers

const SIGNS = { "\n": "↵", " ": "␣", "\t": "⇥", "\r": "␍" };

/** A character as it can be seen: those that leave no mark by a sign or by their number. */
function sign(character) {
  const number = character.codePointAt(0);
  if (character in SIGNS) return SIGNS[character];
  if (number < 0x20) return String.fromCharCode(0x2400 + number);
  return /[\p{C}\p{Z}]/u.test(character) ? `U+${number.toString(16).toUpperCase().padStart(4, "0")}` : character;
}

/** A token as it stands in a list: every character visible, bytes that are no character in hexadecimal. */
function named(token) {
  const piece = data.pieces[token];
  if (typeof piece === "string") return [...piece].map(sign).join("");
  return piece.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join("·");
}

const WORDS = { "\n": "line end", " ": "space", "\t": "tab", "\r": "carriage return", "\r\n": "line end" };

/** A token as it is read out. */
const spoken = (token) => WORDS[data.pieces[token]] ?? named(token);

function percent(p) {
  if (p < 0.0001) return "<0.01%";
  return `${(100 * p).toFixed(p < 0.0995 ? 2 : 1)}%`;
}

const nats = (loss) => loss.toFixed(2);

// Elements

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function glyph(token) {
  const kind = typeof data.pieces[token] === "string" ? "glyph" : "glyph bytes";
  return element("span", { class: kind }, named(token));
}

function setGlyph(span, token) {
  span.textContent = named(token);
  span.classList.toggle("bytes", typeof data.pieces[token] !== "string");
}

// The text

const options = [];

function buildText() {
  document.body.classList.toggle("tokens", unit === "token");
  tokens.forEach((token, i) => {
    const option = element("span", { role: "option", id: `at-${i}`, "aria-selected": "false", "aria-label": label(i) });
    if (i < data.given && data.given < size) option.classList.add("given");
    if (i > 0) option.style.setProperty("--surprise", Math.min(data.losses[i - 1] / data.evenly, 1).toFixed(3));
    const piece = data.pieces[token];
    if (typeof piece !== "string") {
      option.classList.add("bytes");
      option.append(named(token));
    } else {
      for (const character of piece) {
        option.append(character === " " ? character : sign(character));
        if (character === "\n") option.append(element("br"));
      }
    }
    options.push(option);
  });
  options.push(
    element("span", { role: "option", id: `at-${size}`, "aria-selected": "false", "aria-label": label(size), class: "coming" }, "?"),
  );
  text.append(...options);
  options.forEach((option, i) => (option.position = i));
}

function label(i) {
  if (i === size) return `the next ${unit}, not there yet`;
  const name = `${unit} ${i + 1} of ${size}, ${spoken(tokens[i])}`;
  return i === 0 ? name : `${name}, probability ${percent(Math.exp(-data.losses[i - 1]))}, loss ${nats(data.losses[i - 1])}`;
}

function buildLegend() {
  const top = data.evenly;
  const step = top > 6 ? 2 : 1;
  for (let tick = 0; tick < top - 0.6 * step; tick += step) addTick(tick, `${tick}`);
  addTick(top, top.toFixed(1));
  const mean = data.losses.length ? data.losses.reduce((sum, loss) => sum + loss, 0) / data.losses.length : null;
  const averaged = mean === null ? "" : ` Here ${nats(mean)} on average.`;
  const origin = data.given < size ? " Bold was given; the model wrote the rest." : "";
  $("scale-text").textContent =
    `Loss in nats: −ln p of the ${unit} that came. ${top.toFixed(1)} is guessing evenly among ` +
    `${data.vocab_size.toLocaleString("en")}.${averaged}${origin}`;
}

function addTick(value, name) {
  const tick = element("span", {}, name);
  tick.style.left = `${(100 * value) / data.evenly}%`;
  $("ticks").append(tick);
}

// What may come next

const rows = [];

function buildCandidates() {
  $("next-title").textContent = `Which ${unit} comes next`;
  for (let k = 0; k < data.candidates[0].length; k++) {
    const row = { name: element("span", { class: "glyph" }), bar: element("i"), share: element("span", { class: "share" }) };
    row.item = element("li", {}, row.name, element("span", { class: "bar" }, row.bar), row.share);
    rows.push(row);
  }
  $("candidates").append(...rows.map((row) => row.item));
}

function showCandidates(i) {
  const at = i - 1;
  const came = tokens[i];
  const start = Math.max(0, i - 24);
  const before = tokens.slice(start, i).map(named).join("");
  $("place").replaceChildren("after ", element("span", { class: "glyph" }, (start > 0 ? "…" : "") + before));
  rows.forEach((row, k) => {
    const token = data.candidates[at][k];
    const p = data.probabilities[at][k];
    setGlyph(row.name, token);
    row.bar.style.transform = `scaleX(${p})`;
    row.share.textContent = percent(p);
    row.item.classList.toggle("came", token === came);
  });
  if (came === undefined) {
    $("came").replaceChildren("The text ends here.");
    return;
  }
  const loss = data.losses[at];
  $("came").replaceChildren(
    element("span", { class: "glyph" }, named(came)),
    ` came: ${percent(Math.exp(-loss))}, rank ${(data.ranks[at] + 1).toLocaleString("en")}, loss ${nats(loss)}`,
  );
}

// What each layer would predict

const lines = [];

function buildLayers() {
  if (!data.layers.length) return;
  const table = document.querySelector("#layers table");
  const ranks = data.layers[0].candidates[0].map((_, k) => element("th", { scope: "col" }, k === 0 ? "likeliest" : ""));
  const head = element("tr", {}, element("th", { scope: "col" }, "after"), ...ranks, element("th", { scope: "col" }, "what came"));
  table.tHead.append(head);
  for (const layer of data.layers) {
    const cells = layer.candidates[0].map(() => {
      const cell = { name: element("span", { class: "glyph" }), share: element("small") };
      cell.box = element("span", { class: "cell" }, cell.name, cell.share);
      return cell;
    });
    const came = element("td");
    table.tBodies[0].append(
      element("tr", {}, element("th", { scope: "row" }, layer.name), ...cells.map((cell) => element("td", {}, cell.box)), came),
    );
    lines.push({ layer, cells, came });
  }
}

function showLayers(i) {
  const at = i - 1;
  for (const { layer, cells, came } of lines) {
    cells.forEach((cell, k) => {
      const token = layer.candidates[at][k];
      const p = layer.probabilities[at][k];
      setGlyph(cell.name, token);
      cell.share.textContent = percent(p);
      cell.box.style.setProperty("--p", p);
      cell.box.classList.toggle("came", token === tokens[i]);
    });
    came.textContent = i < size ? percent(Math.exp(-layer.losses[at])) : "";
  }
}

// Attention. A byte holds 255 times the square root of a weight, which is also how dark it is drawn: small ones show.

const STEPS = 16; // of the height of a bar below the text: half a pixel each
const THUMB = 64; // pixels; a longer text is drawn with the largest of each few weights

const start = (layer, head, row) => (layer * heads + head) * triangle + (row * (row + 1)) / 2;
let blue; // as the style sheet has it

const boxes = [];

function buildHeads() {
  $("attention").style.setProperty("--heads", heads);
  const names = Array.from({ length: heads }, (_, h) => element("span", { role: "columnheader" }, `${h + 1}`));
  grid.append(element("div", { role: "row" }, element("span", { role: "columnheader" }, "head"), ...names));
  for (let layer = 0; layer < layers; layer++) {
    const cells = Array.from({ length: heads }, (_, head) => {
      const box = { layer, head, whole: element("canvas", { class: "whole" }), strip: element("canvas", { class: "strip" }) };
      box.whole.width = box.whole.height = Math.min(size, THUMB);
      box.strip.width = Math.min(size, THUMB);
      box.strip.height = 1;
      const name = { role: "gridcell", id: `head-${layer}-${head}`, "aria-selected": "false" };
      const said = `layer ${layer + 1}, head ${head + 1}`;
      box.cell = element("div", { ...name, "aria-label": said, title: said }, box.whole, box.strip);
      box.cell.box = box;
      boxes.push(box);
      return box.cell;
    });
    const name = element("span", { role: "rowheader" }, layer === 0 ? "layer 1" : `${layer + 1}`);
    grid.append(element("div", { role: "row" }, name, ...cells));
  }
  const map = document.querySelector("#map canvas");
  map.width = map.height = size;
  $("row").style.height = `${100 / size}%`;
}

/** Some rows of a head on a canvas of as many columns as the text has tokens, or fewer. */
function draw(canvas, layer, head, first = 0, last = size - 1) {
  const { width, height } = canvas;
  const image = new ImageData(width, height);
  const [r, g, b] = blue;
  for (let row = first; row <= last; row++) {
    const from = start(layer, head, row);
    const line = width * Math.floor(((row - first) * height) / (last - first + 1));
    for (let column = 0; column <= row; column++) {
      const pixel = 4 * (line + Math.floor((column * width) / size));
      image.data[pixel] = r;
      image.data[pixel + 1] = g;
      image.data[pixel + 2] = b;
      image.data[pixel + 3] = Math.max(image.data[pixel + 3], weights[from + column]);
    }
  }
  canvas.getContext("2d", { willReadFrequently: true }).putImageData(image, 0, 0); // kept where the pixels are made
}

function drawHeads() {
  blue = getComputedStyle(document.documentElement).getPropertyValue("--blue").trim().split(/\s+/).map(Number);
  for (const box of boxes) draw(box.whole, box.layer, box.head);
}

function showHead() {
  if (!boxes.length) return;
  const { layer, head } = shown;
  draw(document.querySelector("#map canvas"), layer, head);
  $("head-title").textContent = `Layer ${layer + 1}, head ${head + 1}`;
}

function showAttention(i) {
  if (!boxes.length) return;
  const row = i - 1;
  for (const box of boxes) draw(box.strip, box.layer, box.head, row, row);
  $("row").style.top = `${(100 * row) / size}%`;
  const from = start(shown.layer, shown.head, row);
  const bytes = weights.subarray(from, from + i);
  options.forEach((option, j) => {
    const height = j < i ? Math.round((STEPS * bytes[j]) / 255) / STEPS : 0;
    if (option.height === height) return; // most stay as they are, and styling all anew would take most of the time
    option.height = height;
    option.style.setProperty("--attention", height);
  });
  const share = (j) => Math.round(100 * (bytes[j] / 255) ** 2);
  const most = [...bytes.keys()].filter(share).sort((a, b) => bytes[b] - bytes[a]).slice(0, 4);
  const parts = most.flatMap((j, k) => [k ? ", " : "", glyph(tokens[j]), ` ${share(j)}% `, element("small", {}, `(${i - j} back)`)]);
  $("head-text").replaceChildren("To predict ", i < size ? glyph(tokens[i]) : `the next ${unit}`, " it reads ", ...(parts.length ? parts : ["many, none for more than 0.5%"]));
}

// Choosing

function show(position) {
  options[shown.position].setAttribute("aria-selected", "false");
  shown.position = Math.min(Math.max(position, 1), size);
  options[shown.position].setAttribute("aria-selected", "true");
  text.setAttribute("aria-activedescendant", `at-${shown.position}`);
  showCandidates(shown.position);
  showLayers(shown.position);
  showAttention(shown.position);
}

function chooseHead(layer, head) {
  boxes[shown.layer * heads + shown.head].cell.setAttribute("aria-selected", "false");
  shown.layer = layer;
  shown.head = head;
  boxes[layer * heads + head].cell.setAttribute("aria-selected", "true");
  grid.setAttribute("aria-activedescendant", `head-${layer}-${head}`);
  showHead();
  showAttention(shown.position);
}

function keep() {
  Object.assign(kept, shown);
}

/** The character in the line above or below that is nearest to the chosen one. */
function nextLine(direction) {
  const here = options[shown.position].getBoundingClientRect();
  let best = shown.position;
  let distance = Infinity;
  let line = null;
  for (let i = shown.position + direction; i >= 1 && i <= size; i += direction) {
    const box = options[i].getClientRects()[0];
    if (Math.abs(box.top - here.top) < box.height / 2) continue;
    line ??= box.top;
    if (Math.abs(box.top - line) >= box.height / 2) break;
    if (Math.abs(box.left - here.left) < distance) {
      distance = Math.abs(box.left - here.left);
      best = i;
    }
  }
  return best;
}

const between = (value, count) => Math.min(Math.max(value, 0), count - 1);

function listen() {
  text.addEventListener("pointerover", (event) => {
    const option = event.target.closest("[role=option]");
    if (option) show(option.position);
  });
  text.addEventListener("pointerleave", () => show(kept.position));
  text.addEventListener("click", (event) => {
    const option = event.target.closest("[role=option]");
    if (!option) return;
    show(option.position);
    keep();
  });
  text.addEventListener("keydown", (event) => {
    const to = {
      ArrowLeft: () => shown.position - 1,
      ArrowRight: () => shown.position + 1,
      ArrowUp: () => nextLine(-1),
      ArrowDown: () => nextLine(1),
      Home: () => 1,
      End: () => size,
    }[event.key];
    if (!to || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    show(to());
    keep();
    options[shown.position].scrollIntoView({ block: "nearest" });
  });

  grid.addEventListener("pointerover", (event) => {
    const box = event.target.closest("[role=gridcell]")?.box;
    if (box) chooseHead(box.layer, box.head);
  });
  grid.addEventListener("pointerleave", () => chooseHead(kept.layer, kept.head));
  grid.addEventListener("click", (event) => {
    if (event.target.closest("[role=gridcell]")) keep();
  });
  grid.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -heads], End: [0, heads] }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    chooseHead(between(shown.layer + by[0], layers), between(shown.head + by[1], heads));
    keep();
  });

  const map = $("map");
  map.addEventListener("pointermove", (event) => {
    const box = map.getBoundingClientRect();
    const row = between(Math.floor((size * (event.clientY - box.top)) / box.height), size);
    if (row + 1 !== shown.position) show(row + 1);
  });
  map.addEventListener("pointerleave", () => show(kept.position));
  map.addEventListener("click", keep);

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    drawHeads();
    showHead();
    showAttention(shown.position);
  });
}

function build() {
  document.title = `Lens: ${data.model}`;
  $("facts").textContent = [data.model, ...data.facts].join(" · ");
  buildText();
  buildLegend();
  buildCandidates();
  buildLayers();
  $("layers").hidden = !lines.length;
  $("attention").hidden = $("head-keys").hidden = !layers;
  if (layers) {
    buildHeads();
    drawHeads();
    chooseHead(kept.layer, kept.head);
    $("rounding").textContent =
      `Each row of a map is a prediction, each column a ${unit} that it reads; below a map lies the row of the ${unit} ` +
      "chosen, as it does below the text. Darkness and height are the square root of the weight. Maps are rounded to 1/255.";
  } else {
    $("bare").textContent = `This model is a table of what follows each ${unit}: it has no layers and no attention to show.`;
  }
  listen();
  show(kept.position);
}

build();
