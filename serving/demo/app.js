"use strict";
// One request (run lengths) gives the mask; the score maps behind the probe come after it. The picture and the
// mask are two canvases on top of each other, so that opacity costs no drawing; both are bounded in size.
const $ = (id) => document.getElementById(id);
const MAX_VIEW = 1600;
const FORMATS = { jpeg: "JPEG", png: "PNG", webp: "WebP", bmp: "BMP", tiff: "TIFF", gif: "GIF" };
const state = { model: null, shown: null, hidden: new Set(), only: null, point: null, run: 0, strips: new Map() };

const problem = (message, code = "") => Object.assign(new Error(message), { code });

function headers() {
  const key = $("key").value.trim();
  return key ? { "x-api-key": key } : {};
}

function tell(error, name = "") {
  $("error").hidden = !error;
  if (!error) return;
  $("error-text").textContent = (name ? `${name}: ` : "") + error.message;
  $("error-code").textContent = error.code ?? "";
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch {
    throw problem("The server cannot be reached, or it broke off the upload. Is it still running?");
  }
  if (response.ok) return response;
  if (response.status === 401) {
    $("key-row").hidden = false;
    $("key").focus();
  }
  let error = null;
  try {
    ({ error } = await response.json());
  } catch { /* the body of a proxy need not be JSON */ }
  if (!error) throw problem(`The server answered ${response.status}.`);
  const again = response.headers.get("retry-after");
  const wait = again ? `; try again in ${again} s` : "";
  throw problem(`${error.message}${wait}`, `${error.code}, request ${error.request_id}`);
}

const segment = (blob, output) => call(`v1/segment?output=${output}`, {
  method: "POST", body: blob, headers: { "content-type": "application/octet-stream" } });

// class ids in column order, as COCO's run lengths have them
function decodeRuns(classes, width, height) {
  const columns = new Uint8Array(width * height).fill(255);
  for (const item of classes) {
    let position = 0, inside = false;
    for (const count of item.rle.counts) {
      if (inside) columns.fill(item.id, position, position + count);
      position += count;
      inside = !inside;
    }
  }
  return columns;
}

function viewOf(result, columns) {
  const scale = Math.min(1, MAX_VIEW / Math.max(result.width, result.height));
  const width = Math.max(1, Math.round(result.width * scale));
  const height = Math.max(1, Math.round(result.height * scale));
  const labels = new Uint8Array(width * height);
  for (let x = 0; x < width; x++) {
    const first = Math.floor((x + 0.5) * result.width / width) * result.height;
    for (let y = 0; y < height; y++)
      labels[y * width + x] = columns[first + Math.floor((y + 0.5) * result.height / height)];
  }
  return { width, height, labels, scores: {} };
}

async function readScores(response, { width, height }) {
  const bitmap = await createImageBitmap(await response.blob());
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0, width, height);
  const rgba = context.getImageData(0, 0, width, height).data;
  const scores = new Uint8Array(width * height);
  for (let i = 0; i < scores.length; i++) scores[i] = rgba[4 * i];
  return scores;
}

const tellsNovelty = () => state.model.outputs.includes("novelty");

const layer = () => document.querySelector("input[name=layer]:checked").value;

function drawMask(pixels, { width, height, labels }) {
  for (let i = 0; i < labels.length; i++) {
    const id = labels[i];
    const color = state.model.classes[id]?.color;
    if (!color || state.hidden.has(id)) continue;
    const faint = state.only !== null && state.only !== id;
    const edge = !faint && ((i + 1) % width && labels[i + 1] !== id
      || i + width < width * height && labels[i + width] !== id);
    for (let c = 0; c < 3; c++) pixels[4 * i + c] = edge ? (color[c] + 510) / 3 : color[c];
    pixels[4 * i + 3] = faint ? 40 : 255;
  }
}

// strong where a mask may be wrong: at low scores, but at high novelty
function drawScores(pixels, { labels }, scores, high) {
  for (let i = 0; i < labels.length; i++) {
    if (state.hidden.has(labels[i]) || (state.only !== null && state.only !== labels[i])) continue;
    pixels[4 * i] = 255;
    pixels[4 * i + 2] = 128;
    pixels[4 * i + 3] = Math.min(255, 2 * (high ? scores[i] : 255 - scores[i]));
  }
}

function draw() {
  if (!state.shown) return;
  const { view } = state.shown;
  const canvas = $("canvas");
  canvas.width = view.width;
  canvas.height = view.height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(view.width, view.height);
  const chosen = layer();
  if (chosen === "mask") drawMask(image.data, view);
  else if (view.scores[chosen]) drawScores(image.data, view, view.scores[chosen], chosen === "novelty");
  context.putImageData(image, 0, 0);
  $("stage").classList.toggle("scores", chosen !== "mask");
  explainLayer(chosen);
}

function explainLayer(chosen) {
  const missing = ["agreement", "confidence"].filter((name) => state.shown.missing.has(name));
  const words = { agreement: ["linear head agrees", "it does not"], confidence: ["sure", "unsure"],
    novelty: ["like what was labelled", "novel"] }[chosen];
  if (words) {
    const scale = document.createElement("span");
    scale.className = "scale";
    $("layer-note").replaceChildren(words[0], scale, words[1]);
  } else {
    $("layer-note").textContent = missing.length ? `This bundle has no map of ${missing.join(" and ")}.` : "";
  }
  $("layer-note").hidden = !$("layer-note").textContent;
}

function drawPhoto() {
  const { view, bitmap } = state.shown;
  const canvas = $("photo");
  canvas.width = view.width;
  canvas.height = view.height;
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, view.width, view.height);
  $("stage").style.setProperty("--ratio", view.width / view.height);
}

const percent = (share) => share > 0 && share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;

function element(tag, name, text = "") {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  return made;
}

function swatch(id) {
  const made = element("span", "swatch");
  made.style.background = `rgb(${(state.model.classes[id]?.color ?? [128, 128, 128]).join(",")})`;
  return made;
}

function highlight(id) {
  if (state.only === id) return;
  state.only = id;
  draw();
}

function legendRow(item) {
  const row = document.createElement("li");
  const label = document.createElement("label");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.checked = !state.hidden.has(item.id);
  box.addEventListener("change", () => {
    if (box.checked) state.hidden.delete(item.id); else state.hidden.add(item.id);
    draw();
  });
  const bar = element("span", "bar");
  const filled = document.createElement("i");
  filled.style.width = `${100 * item.fraction}%`;
  bar.append(filled);
  label.append(box, swatch(item.id), element("span", "name", item.name),
    element("span", "share", percent(item.fraction)), bar);
  if (item.mean_confidence !== undefined) label.title = `mean confidence ${item.mean_confidence.toFixed(2)}`;
  label.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && highlight(item.id));
  label.addEventListener("pointerleave", () => highlight(null));
  row.append(label);
  return row;
}

function drawLegend() {
  const sorted = state.shown.result.classes.slice().sort((a, b) => b.pixels - a.pixels);
  $("legend").replaceChildren(...sorted.map(legendRow));
}

function setAll(visible) {
  state.hidden = new Set(visible ? [] : state.shown.result.classes.map((item) => item.id));
  drawLegend();
  draw();
}

function drawFacts(milliseconds) {
  const { result } = state.shown;
  const rows = [["Image", `${result.width} × ${result.height}`], ["Time", `${milliseconds.toFixed(0)} ms`]];
  if (result.mean_confidence !== null) rows.push(["Mean confidence", result.mean_confidence.toFixed(2)]);
  if (result.mean_agreement !== null) rows.push(["Mean agreement", result.mean_agreement.toFixed(2)]);
  if (result.novel_share !== undefined) rows.push(["Novel", `${(100 * result.novel_share).toFixed(1)} %`]);
  if (result.tiles > 1) rows.push(["Tiles", result.tiles]);
  $("facts").replaceChildren(...rows.map(([name, value]) => {
    const row = document.createElement("div");
    row.append(element("dt", "", name), element("dd", "", value));
    return row;
  }));
  const stages = Object.entries(result.timing_ms).map(([key, ms]) => `${key} ${ms.toFixed(1)} ms`);
  $("timing").textContent = `On the server: ${stages.join(", ")}; the rest is transfer and this page.`;
}

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function drawCommand(name) {
  const place = new URL("v1/segment", location.href).href;
  const key = $("key").value.trim() ? ' -H "x-api-key: $PROTOSEG_API_KEY"' : "";
  $("curl").value = `curl --data-binary ${quote(`@${name}`)}${key} \\\n  ${quote(place)} \\\n  -o mask.png`;
}

const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

// what each cell of the feature map resembles; an image that is tiled has no such map
async function loadReasons(run) {
  const { shown } = state;
  if (!state.model.explains) return;
  try {
    const { grid, prototypes } = await (await segment(shown.blob, "explain&grid=1")).json();
    if (run !== state.run) return;
    const parts = ["similarity", "runner_up", "runner_up_similarity"].map((name) => [name, bytesOf(grid[name])]);
    shown.reasons = { ...grid, ...Object.fromEntries(parts), prototype: new Uint16Array(bytesOf(grid.prototype).buffer),
      named: new Map(prototypes.map((item) => [item.index, item])) };
    $("result").dataset.reasons = String(run);
  } catch { /* the masks are there without it */ }
}

function reasonAt(x, y) {
  const { result, reasons } = state.shown;
  if (!reasons) return null;
  const cell = (at, size, covered, cells) => Math.min(cells - 1, Math.floor((at + 0.5) * covered / size));
  const at = cell(y, result.height, reasons.covered[0], reasons.rows) * reasons.columns
    + cell(x, result.width, reasons.covered[1], reasons.columns);
  const named = reasons.named.get(reasons.prototype[at]);
  if (!named) return null;
  const score = (values) => (values[at] / 255).toFixed(2);
  const second = state.model.classes[reasons.runner_up[at]]?.name;
  const then = second ? `, then ${second} ${score(reasons.runner_up_similarity)}` : "";
  const doubt = named.doubts.length ? ` (doubtful: ${named.doubts.join(", ")})` : "";
  return { path: named.thumbnails.path, text: `like ${named.class} ${named.number} ${score(reasons.similarity)}${then}${doubt}` };
}

// an address of the thumbnails' own bytes: the key goes with the request, which an image's source cannot do
function stripAddress(path) {
  if (!state.strips.has(path))
    state.strips.set(path, call(path.slice(1)).then((response) => response.blob()).then((blob) => URL.createObjectURL(blob)));
  return state.strips.get(path);
}

function showPatches({ path }) {
  const image = element("img", "");
  image.alt = "training patches that it resembles";
  stripAddress(path).then((address) => { image.src = address; }, () => { state.strips.delete(path); image.remove(); });
  return image;
}

// the class and scores at a pixel of the whole image
function readPoint(x, y) {
  const { result, columns, view } = state.shown;
  x = Math.min(result.width - 1, Math.max(0, Math.floor(x)));
  y = Math.min(result.height - 1, Math.max(0, Math.floor(y)));
  const id = columns[x * result.height + y];
  const at = Math.floor((y + 0.5) * view.height / result.height) * view.width
    + Math.floor((x + 0.5) * view.width / result.width);
  const parts = Object.entries(view.scores).map(([name, scores]) => `${name} ${(scores[at] / 255).toFixed(2)}`);
  return { x, y, id, name: state.model.classes[id]?.name ?? "none", parts, reason: reasonAt(x, y) };
}

function showPoint(point, keyboard) {
  const { result } = state.shown;
  const left = (point.x + 0.5) / result.width, top = (point.y + 0.5) / result.height;
  const tip = $("tip");
  tip.replaceChildren(swatch(point.id), element("strong", "", point.name), ...point.parts.map((p) => element("span", "", p)));
  if (point.reason) tip.append(element("span", "why", point.reason.text), showPatches(point.reason));
  for (const item of [tip, $("marker")]) {
    item.style.left = `${100 * left}%`;
    item.style.top = `${100 * top}%`;
  }
  tip.className = `${point.reason ? "long" : ""} ${top < (point.reason ? 0.35 : 0.15) ? "below" : ""} ${left < 0.3 ? "left" : left > 0.7 ? "right" : ""}`;
  tip.hidden = false;
  $("marker").hidden = !keyboard;
  // only the keyboard's moves are read out
  $("probe").ariaLive = keyboard ? "polite" : "off";
  const reason = point.reason ? [point.reason.text] : [];
  $("probe").textContent = [`${point.x}, ${point.y}: ${point.name}`, ...point.parts, ...reason].join(", ");
}

function hidePoint() {
  $("tip").hidden = $("marker").hidden = true;
}

function bytes(count) {
  return count < 2 ** 20 ? `${Math.ceil(count / 2 ** 10)} KiB` : `${+(count / 2 ** 20).toFixed(1)} MiB`;
}

function checkSize(blob) {
  const limit = state.model?.limits.max_body;
  if (limit && blob.size > limit) throw problem(`The file has ${bytes(blob.size)}; this server takes ${bytes(limit)}.`);
}

async function readBitmap(blob) {
  try {
    return await createImageBitmap(blob);
  } catch {
    return null;
  }
}

async function show(blob, name) {
  try {
    checkSize(blob);
  } catch (error) {
    // before the run counts: what is shown goes on loading its score maps
    tell(error, name);
    return;
  }
  const run = ++state.run;
  tell(null);
  document.body.classList.add("busy");
  $("progress").hidden = false;
  try {
    const started = performance.now();
    const result = await (await segment(blob, "rle")).json();
    const bitmap = await readBitmap(blob);
    if (run !== state.run) return;
    if (!bitmap) throw problem("It was segmented, but this browser cannot show the format.");
    const columns = decodeRuns(result.classes, result.width, result.height);
    state.shown = { blob, name, bitmap, result, columns, view: viewOf(result, columns), missing: new Set() };
    state.point = null;
    state.hidden.clear();
    hidePoint();
    document.body.classList.add("shown");
    $("result").hidden = false;
    drawPhoto();
    drawLegend();
    draw();
    drawFacts(performance.now() - started);
    drawCommand(name);
    $("result").dataset.ready = String(run);
    await loadScores(run);
    if (run === state.run) await loadReasons(run);
  } catch (error) {
    if (run === state.run) tell(error, name);
  } finally {
    if (run === state.run) {
      document.body.classList.remove("busy");
      $("progress").hidden = true;
    }
  }
}

async function loadScores(run) {
  const { blob, view, missing } = state.shown;
  for (const name of ["confidence", "agreement", ...(tellsNovelty() ? ["novelty"] : [])]) {
    const radio = document.querySelector(`input[value=${name}]`);
    try {
      const scores = await readScores(await segment(blob, name), view);
      if (run !== state.run) return;
      view.scores[name] = scores;
      radio.disabled = false;
    } catch {
      // the bundle's graph need not have this map
      if (run !== state.run) return;
      missing.add(name);
      radio.disabled = true;
      if (radio.checked) document.querySelector("input[value=mask]").checked = true;
    }
  }
  $("result").dataset.scores = String(run);
  draw();
}

async function download(output) {
  const { blob, name } = state.shown;
  try {
    const response = await segment(blob, output);
    const link = document.createElement("a");
    const ending = { mask: "png", overlay: "jpg", json: "json" }[output];
    link.href = URL.createObjectURL(await response.blob());
    link.download = `${name.replace(/\.[^.]*$/, "") || "image"}.${output}.${ending}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) {
    tell(error, name);
  }
}

async function sampleButton(path, index) {
  const blob = await (await call(path.slice(1))).blob();
  const button = document.createElement("button");
  button.type = "button";
  const image = document.createElement("img");
  image.alt = `sample ${index + 1}`;
  image.src = URL.createObjectURL(blob);
  button.append(image);
  button.addEventListener("click", () => choose(blob, `sample${index}.png`, button));
  return button;
}

async function loadModel() {
  try {
    state.model = await (await call("v1/model")).json();
    state.strips.clear();
    $("novelty-layer").hidden = !tellsNovelty();
    tell(null);
    $("key-row").hidden = true;
    const { name, version, runtime, classes, limits } = state.model;
    const facts = [name, version, `${classes.length} classes`, runtime];
    $("model").replaceChildren(...facts.map((text) => element("span", "", text)));
    $("limits").textContent = `${limits.formats.map((f) => FORMATS[f]).join(", ")}; up to ${bytes(limits.max_body)}`
      + ` and ${+(limits.max_pixels / 1e6).toFixed(1)} megapixels`;
    $("file").accept = limits.formats.map((format) => `image/${format}`).join(",");
    const buttons = await Promise.all(state.model.samples.map(sampleButton));
    $("samples").replaceChildren("or try", ...buttons);
    $("samples").hidden = !buttons.length;
  } catch (error) {
    $("model").textContent = "";
    tell(error);
  }
}

function choose(blob, name, button = null) {
  for (const item of document.querySelectorAll("#samples button")) item.ariaPressed = String(item === button);
  show(blob, name);
}

function listenSource() {
  $("file").addEventListener("change", () => {
    const file = $("file").files[0];
    if (file) choose(file, file.name);
    // choosing the same file again must count too
    $("file").value = "";
  });
  const over = (on) => document.body.classList.toggle("over", on);
  document.addEventListener("dragover", (event) => { event.preventDefault(); over(true); });
  document.addEventListener("dragleave", () => over(false));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    const file = event.dataTransfer.files[0];
    if (file) choose(file, file.name);
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((item) => item.type.startsWith("image/"));
    if (file) choose(file, file.name || "pasted.png");
  });
  $("key-row").addEventListener("submit", (event) => { event.preventDefault(); loadModel(); });
  $("error-close").addEventListener("click", () => tell(null));
}

function listenPanel() {
  const opacity = () => $("stage").style.setProperty("--opacity", $("opacity").value / 100);
  $("opacity").addEventListener("input", opacity);
  opacity();
  document.querySelectorAll("input[name=layer]").forEach((item) => item.addEventListener("change", draw));
  $("all").addEventListener("click", () => setAll(true));
  $("none").addEventListener("click", () => setAll(false));
  const bare = (on) => $("stage").classList.toggle("bare", on);
  const compare = $("compare");
  compare.addEventListener("pointerdown", () => bare(true));
  for (const name of ["pointerup", "pointerleave", "pointercancel", "keyup", "blur"])
    compare.addEventListener(name, () => bare(false));
  compare.addEventListener("keydown", (event) => bare(event.key === " " || event.key === "Enter"));
  document.querySelectorAll("#downloads button").forEach((button) =>
    button.addEventListener("click", () => download(button.dataset.output)));
  $("copy").addEventListener("click", () => {
    // the clipboard interface needs https or localhost; this does not
    $("curl").select();
    $("copy").textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl+C";
    setTimeout(() => { $("copy").textContent = "Copy"; }, 2000);
  });
}

function listenCanvas() {
  const canvas = $("canvas");
  const point = (event) => {
    if (!state.shown) return;
    const box = canvas.getBoundingClientRect();
    const { width, height } = state.shown.result;
    state.point = readPoint((event.clientX - box.left) * width / box.width, (event.clientY - box.top) * height / box.height);
    showPoint(state.point, false);
  };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hidePoint());
  canvas.addEventListener("blur", hidePoint);
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move || !state.shown) return;
    event.preventDefault();
    const { width, height } = state.shown.result;
    const step = event.shiftKey ? 1 : Math.max(1, Math.round(Math.max(width, height) / 64));
    const from = state.point ?? { x: width / 2, y: height / 2 };
    state.point = readPoint(from.x + step * move[0], from.y + step * move[1]);
    showPoint(state.point, true);
  });
}

listenSource();
listenPanel();
listenCanvas();
loadModel();
