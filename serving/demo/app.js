"use strict";
// One request (run lengths) draws the mask; the score maps behind the probe come after it.
const $ = (id) => document.getElementById(id);
const state = { model: null, file: null, name: "", bitmap: null, labels: null, result: null,
  scores: { confidence: null, agreement: null }, hidden: new Set(), probe: null, run: 0 };

function headers() {
  const key = $("key").value.trim();
  return key ? { "x-api-key": key } : {};
}

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch {
    throw new Error("The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  if (response.status === 401) $("key-row").hidden = false;
  let text = `The server answered ${response.status}.`;
  try {
    const { error } = await response.json();
    text = `${error.message} (${error.code}, request ${error.request_id})`;
  } catch { /* the body of a proxy need not be JSON */ }
  throw new Error(text);
}

const segment = (output, extra = "") => call(`v1/segment?output=${output}${extra}`, {
  method: "POST", body: state.file, headers: { "content-type": "application/octet-stream" } });

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
  const labels = new Uint8Array(width * height);
  for (let x = 0; x < width; x++)
    for (let y = 0; y < height; y++) labels[y * width + x] = columns[x * height + y];
  return labels;
}

async function readScores(response, width, height) {
  const bitmap = await createImageBitmap(await response.blob());
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, width, height).data;
  return Uint8Array.from({ length: width * height }, (_, i) => rgba[4 * i]);
}

const layer = () => document.querySelector("input[name=layer]:checked").value;

function draw() {
  if (!state.labels) return;
  const { width, height } = state.result;
  const canvas = $("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  context.drawImage(state.bitmap, 0, 0, width, height);
  const image = context.getImageData(0, 0, width, height);
  const alpha = $("opacity").value / 100;
  const chosen = layer();
  const scores = state.scores[chosen];
  const colors = state.model.classes.map((c) => c.color);
  for (let i = 0; i < state.labels.length; i++) {
    const id = state.labels[i];
    if (state.hidden.has(id)) continue;
    let color = colors[id], share = alpha;
    if (chosen !== "mask") {
      if (!scores) continue;
      color = [255, 0, 128];
      share = alpha * Math.min(1, 2 * (1 - scores[i] / 255));
    }
    for (let c = 0; c < 3; c++)
      image.data[4 * i + c] = image.data[4 * i + c] * (1 - share) + color[c] * share;
  }
  context.putImageData(image, 0, 0);
  if (state.probe) {
    context.strokeStyle = "#fff";
    context.lineWidth = Math.max(1, width / 400);
    context.strokeRect(state.probe.x - 4, state.probe.y - 4, 8, 8);
  }
}

function swatch(color) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const context = canvas.getContext("2d");
  context.fillStyle = `rgb(${color.join(",")})`;
  context.fillRect(0, 0, 1, 1);
  return canvas;
}

function drawLegend() {
  $("legend").replaceChildren(...state.result.classes
    .slice().sort((a, b) => b.pixels - a.pixels)
    .map((item) => {
      const row = document.createElement("li");
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = !state.hidden.has(item.id);
      box.addEventListener("change", () => {
        if (box.checked) state.hidden.delete(item.id); else state.hidden.add(item.id);
        draw();
      });
      const name = document.createElement("span");
      name.textContent = item.name;
      const share = document.createElement("span");
      share.textContent = `${(100 * item.fraction).toFixed(1)} %`;
      label.append(box, swatch(item.color), name, share);
      row.append(label);
      return row;
    }));
}

function probe(x, y) {
  const { width, height } = state.result;
  x = Math.min(width - 1, Math.max(0, Math.floor(x)));
  y = Math.min(height - 1, Math.max(0, Math.floor(y)));
  const index = y * width + x;
  const parts = [`${x}, ${y}: ${state.model.classes[state.labels[index]]?.name ?? "none"}`];
  for (const name of ["confidence", "agreement"]) {
    const scores = state.scores[name];
    if (scores) parts.push(`${name} ${(scores[index] / 255).toFixed(2)}`);
  }
  $("probe").textContent = parts.join(", ");
  return { x, y };
}

async function show(blob, name) {
  const run = ++state.run;
  fail("");
  document.body.classList.add("busy");
  try {
    state.file = blob;
    state.name = name;
    try {
      state.bitmap = await createImageBitmap(blob);
    } catch {
      state.bitmap = null;
    }
    const started = performance.now();
    const response = await segment("rle");
    const result = await response.json();
    if (run !== state.run) return;
    const total = performance.now() - started;
    state.result = result;
    state.labels = decodeRuns(result.classes, result.width, result.height);
    state.scores = { confidence: null, agreement: null };
    state.probe = null;
    state.hidden.clear();
    if (!state.bitmap) {
      $("result").hidden = true;
      throw new Error("The image was segmented, but this browser cannot show its format.");
    }
    $("result").hidden = false;
    drawLegend();
    draw();
    const stages = Object.entries(result.timing_ms).map(([key, ms]) => `${key} ${ms.toFixed(1)} ms`);
    $("timing").textContent = `${result.width} x ${result.height}, ${total.toFixed(0)} ms in all; ${stages.join(", ")}`;
    const place = new URL("v1/segment", location.href).href;
    $("curl").value = `curl -F 'image=@${name.replaceAll("'", "")}' '${place}' -o mask.png`;
    $("result").dataset.ready = String(run);
    await loadScores(run);
  } catch (error) {
    if (run === state.run) fail(error.message);
  } finally {
    if (run === state.run) document.body.classList.remove("busy");
  }
}

async function loadScores(run) {
  for (const name of ["confidence", "agreement"]) {
    const radio = document.querySelector(`input[value=${name}]`);
    try {
      const scores = await readScores(await segment(name), state.result.width, state.result.height);
      if (run !== state.run) return;
      state.scores[name] = scores;
      radio.disabled = false;
    } catch {
      // the bundle's graph need not have this map
      radio.disabled = true;
    }
  }
  $("result").dataset.scores = String(run);
  draw();
}

async function download(output) {
  try {
    const response = await segment(output);
    const link = document.createElement("a");
    const ending = { mask: "png", overlay: "jpg", json: "json" }[output];
    link.href = URL.createObjectURL(await response.blob());
    link.download = `${state.name.replace(/\.[^.]*$/, "") || "image"}.${output}.${ending}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) {
    fail(error.message);
  }
}

async function loadModel() {
  try {
    state.model = await (await call("v1/model")).json();
  } catch (error) {
    fail(error.message);
    return;
  }
  fail("");
  const { name, version, runtime, classes } = state.model;
  $("model").textContent = `${name} ${version}, ${classes.length} classes, ${runtime}`;
  const buttons = await Promise.all(state.model.samples.map(async (path, index) => {
    const blob = await (await call(path.slice(1))).blob();
    const button = document.createElement("button");
    button.type = "button";
    const image = document.createElement("img");
    image.alt = `sample ${index + 1}`;
    image.src = URL.createObjectURL(blob);
    button.append(image);
    button.addEventListener("click", () => show(blob, `sample${index}.png`));
    return button;
  }));
  $("samples").replaceChildren(...buttons);
}

function listen() {
  $("file").addEventListener("change", () => {
    const file = $("file").files[0];
    if (file) show(file, file.name);
  });
  const drop = $("drop");
  document.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  document.addEventListener("dragleave", () => drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const file = event.dataTransfer.files[0];
    if (file) show(file, file.name);
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((item) => item.type.startsWith("image/"));
    if (file) show(file, file.name || "pasted.png");
  });
  $("key").addEventListener("change", loadModel);
  $("opacity").addEventListener("input", draw);
  document.querySelectorAll("input[name=layer]").forEach((item) => item.addEventListener("change", draw));
  document.querySelectorAll("#downloads button").forEach((button) =>
    button.addEventListener("click", () => download(button.dataset.output)));
  $("copy").addEventListener("click", () => { $("curl").select(); document.execCommand("copy"); });
  const canvas = $("canvas");
  canvas.addEventListener("pointermove", (event) => {
    if (!state.labels) return;
    const box = canvas.getBoundingClientRect();
    probe((event.clientX - box.left) * canvas.width / box.width, (event.clientY - box.top) * canvas.height / box.height);
  });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move || !state.labels) return;
    event.preventDefault();
    const step = event.shiftKey ? 1 : Math.max(1, Math.round(canvas.width / 64));
    const from = state.probe ?? { x: canvas.width / 2, y: canvas.height / 2 };
    state.probe = probe(from.x + step * move[0], from.y + step * move[1]);
    draw();
  });
}

listen();
loadModel();
