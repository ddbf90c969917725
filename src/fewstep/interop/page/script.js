// Runs a one-step or few-step generator in the page: noise from seeds, the network in workers, samples in a grid or a plane.
//
// Symbols: the inputs of model.onnx are `latents` [B, ...latentShape], `labels` [B], and what else the generator draws, standard normal:
// `noise` [count, B, ...shape] between steps, `xi` [count, B, ...] in each step. One item's noise is one `row`: its latents, then the rest.
(() => {
  "use strict";

  const config = JSON.parse(document.getElementById("config").textContent);
  const element = (name) => document.getElementById(name);
  const product = (shape) => shape.reduce((a, b) => a * b, 1);
  const clamp = (x, least, most) => Math.min(most, Math.max(least, x));

  // the random inputs, of each `count` vectors of `size` numbers for an item
  const INPUTS = [{ name: "latents", count: 1, shape: config.latentShape }, ...config.later].map((input) => ({ ...input, size: product(input.shape) }));
  const [LATENT, ITEM] = [INPUTS[0].size, product(config.shape)];
  // [first, end] of each vector in a row; each vector is interpolated on a sphere of its own
  const VECTORS = [];
  let ROW = 0;
  for (const { count, size } of INPUTS) for (let j = 0; j < count; j++) VECTORS.push([ROW, (ROW += size)]);
  const IS_IMAGE = config.shape.length === 3;
  const POINTS = 2000;
  const LINES = { wide: 6, narrow: 4 }; // most lines of the grid, on a wide and on a narrow screen
  const PASS = 6000; // milliseconds that drawing the whole grid may take: on a slower machine the grid has fewer lines
  const FRAME = 600; // milliseconds after which an unfinished grid is given up for a newer one
  const CHUNK = 60; // milliseconds between updates of a grid that is being drawn
  const SLOW = 250; // milliseconds that a whole grid takes by one worker, above which more workers are started
  const LARGE = 32e6; // bytes of a model from which on only one worker holds a copy

  // ---- noise

  // A function that returns 32 random bits at each call: sfc32 of PractRand, seeded with a seed and the number of an item.
  function randomBits(seed, item) {
    let [a, b, c, count] = [seed >>> 0, item >>> 0, 0x9e3779b9, 1];
    const next = () => {
      const sum = (a + b + count) | 0;
      count = (count + 1) | 0;
      a = b ^ (b >>> 9);
      b = (c + (c << 3)) | 0;
      c = (((c << 21) | (c >>> 11)) + sum) | 0;
      return sum >>> 0;
    };
    for (let i = 0; i < 20; i++) next(); // until each bit of the seed has reached all others
    return next;
  }

  // The row of an item: standard normal numbers by the Box-Muller transform, which depend only on the seed and the item's number.
  function rowOf(seed, item) {
    const bits = randomBits(seed, item);
    const row = new Float32Array(ROW);
    for (let i = 0; i < ROW; i += 2) {
      const radius = Math.sqrt(-2 * Math.log((bits() + 0.5) / 2 ** 32));
      const angle = (2 * Math.PI * bits()) / 2 ** 32;
      row[i] = radius * Math.cos(angle);
      if (i + 1 < ROW) row[i + 1] = radius * Math.sin(angle);
    }
    return row;
  }

  const norm = (vector) => Math.sqrt(vector.reduce((sum, x) => sum + x * x, 0));

  // Spherical interpolation from `a` to `b` at `place` from 0 to 1; the length goes linearly from that of `a` to that of `b`.
  function slerp(a, b, place) {
    const [normA, normB] = [norm(a), norm(b)];
    const angle = Math.acos(clamp(a.reduce((sum, x, i) => sum + x * b[i], 0) / (normA * normB), -1, 1));
    if (Math.sin(angle) < 1e-6) return place < 0.5 ? a : b; // no single circle goes through both
    const length = (1 - place) * normA + place * normB;
    const ofA = (length * Math.sin((1 - place) * angle)) / (Math.sin(angle) * normA);
    const ofB = (length * Math.sin(place * angle)) / (Math.sin(angle) * normB);
    return a.map((x, i) => ofA * x + ofB * b[i]);
  }

  // The row of an item at `place` between its rows by two seeds; at 0 and 1 exactly one of these rows.
  function rowBetween(seed, other, place, item) {
    if (place === 0) return rowOf(seed, item);
    if (place === 1) return rowOf(other, item);
    const [a, b, row] = [rowOf(seed, item), rowOf(other, item), new Float32Array(ROW)];
    for (const [first, end] of VECTORS) row.set(slerp(a.subarray(first, end), b.subarray(first, end), place), first);
    return row;
  }

  // The network's random inputs for an array of rows, by name.
  function packed(rows) {
    const places = [...VECTORS];
    const inputs = INPUTS.map(({ name, count, size }) => {
      const values = new Float32Array(count * rows.length * size);
      for (let j = 0; j < count; j++) {
        const [first, end] = places.shift();
        rows.forEach((row, i) => values.set(row.subarray(first, end), (j * rows.length + i) * size));
      }
      return [name, values];
    });
    return Object.fromEntries(inputs);
  }

  // ---- the network

  // Start a worker, and return `ask(what, told)`, which sends it a request and returns a promise of the answer.
  function startWorker() {
    const source = new Blob([element("worker").textContent], { type: "text/javascript" });
    const worker = new Worker(URL.createObjectURL(source), { type: "module" });
    const waiting = new Map();
    let asked = 0;
    worker.onmessage = ({ data }) => {
      const { resolve, reject } = waiting.get(data.id);
      waiting.delete(data.id);
      if ("error" in data) reject(new Error(data.error));
      else resolve(data.value);
    };
    worker.onerror = () => waiting.forEach(({ reject }) => reject(new Error("this browser cannot start a worker")));
    return (what, told) =>
      new Promise((resolve, reject) => {
        waiting.set(++asked, { resolve, reject });
        worker.postMessage({ id: asked, ask: what, ...told });
      });
  }

  // The content of a file, whose hash is checked against that of the file that the page was made with.
  async function fetched({ address, integrity }) {
    let response;
    try {
      // asked again of the server at each visit: a page that was exported anew must not meet the generator of the last one in the cache
      response = await fetch(address, { integrity, credentials: "omit", cache: "no-cache" });
    } catch {
      throw new Error(`${address} could not be loaded, or is not the file that this page was made with`);
    }
    if (!response.ok) throw new Error(`${address} could not be loaded: the server answers ${response.status}`);
    return response.blob();
  }

  const workers = [];
  let files;

  async function addWorker() {
    const ask = startWorker();
    await ask("start", files);
    workers.push(ask);
  }

  // A promise of the samples for given inputs, and the milliseconds that they took, by the worker `ask`.
  function run(ask, { labels, ...inputs }) {
    const num = inputs.latents.length / LATENT;
    const feeds = {};
    for (const { name, count, shape } of INPUTS) {
      feeds[name] = { type: "float32", data: inputs[name], dims: name === "latents" ? [num, ...shape] : [count, num, ...shape] };
    }
    if (config.classes) feeds.labels = { type: "int64", data: BigInt64Array.from(labels, BigInt), dims: [num] };
    return ask("run", { feeds });
  }

  // ---- what is seen

  const picture = element("picture");
  const isNarrow = matchMedia("(max-width: 52rem)");
  const times = []; // milliseconds for each item, in the latest runs
  let pace; // milliseconds for each item, in the last run
  let lines = Infinity; // lines of the grid that this machine draws within PASS
  let canvases = [];
  let scattered = { samples: new Float32Array(), labels: [] };

  // The number of the grid's columns: where there are at most 12 classes, each class has columns of its own.
  function columns() {
    const count = config.classes && config.classes.length <= 12 ? config.classes.length : 1;
    const repeated = (about) => count * Math.max(1, Math.round(about / count));
    const wanted = isNarrow.matches ? (count > 6 ? Math.ceil(count / 2) : repeated(5)) : repeated(9);
    return clamp(Math.floor(picture.clientWidth / config.shape[2]), 1, wanted);
  }

  const items = () => (IS_IMAGE ? columns() * Math.min(lines, isNarrow.matches ? LINES.narrow : LINES.wide) : POINTS);

  function layOut(num) {
    if (!IS_IMAGE) num = 1;
    else picture.style.setProperty("--columns", Math.min(columns(), num));
    if (canvases.length === num) return;
    const [width, height] = IS_IMAGE ? [config.shape[2], config.shape[1]] : [1200, 1200];
    canvases = Array.from({ length: num }, () => Object.assign(document.createElement("canvas"), { width, height }));
    picture.replaceChildren(...canvases);
  }

  // Draw one image [C, H, W] of [-1, 1], of one channel or three.
  function paint(canvas, image) {
    const [channels, height, width] = config.shape;
    const pixels = new ImageData(width, height);
    for (let i = 0; i < height * width; i++) {
      for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = Math.round((image[(c % channels) * height * width + i] + 1) * 127.5);
      pixels.data[4 * i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    canvas.classList.remove("stale");
  }

  // Draw the points of `scattered`, a colour for each class, in the square that holds nearly all samples.
  function scatter() {
    const [canvas] = canvases;
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    const { centre, half } = config.extent;
    const at = (value, axis) => ((value - centre[axis]) / half + 1) / 2;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.globalAlpha = 0.55;
    for (let i = 0; i < scattered.samples.length / 2; i++) {
      pen.fillStyle = style.getPropertyValue(`--line-${scattered.labels ? scattered.labels[i] % 8 : 0}`);
      pen.beginPath();
      pen.arc(at(scattered.samples[2 * i], 0) * canvas.width, (1 - at(scattered.samples[2 * i + 1], 1)) * canvas.height, 5, 0, 7);
      pen.fill();
    }
  }

  function show(samples, labels, first) {
    if (IS_IMAGE) {
      for (let i = 0; i < samples.length / ITEM; i++) paint(canvases[first + i], samples.subarray(i * ITEM, (i + 1) * ITEM));
    } else {
      scattered = { samples, labels };
      scatter();
    }
  }

  // Show the median time of the latest runs.
  function time(milliseconds) {
    pace = milliseconds;
    times.push(pace);
    if (times.length > 15) times.shift();
    const middle = [...times].sort((a, b) => a - b)[times.length >> 1];
    element("speed").textContent = middle < 9.95 ? Number(middle.toPrecision(2)) : Math.round(middle);
  }

  function fail(error) {
    element("message").textContent = `The generator cannot run here: ${error.message}.`;
    element("message").hidden = false;
    element("loading").textContent = "";
  }

  // ---- drawing

  // The settings of the page's controls: both seeds, the place between them, and the class or null for any.
  function wanted() {
    const chosen = document.querySelector("[name=label]:checked, select[name=label]");
    const seed = (name) => clamp(Math.floor(element(name).valueAsNumber) || 0, 0, 2 ** 32 - 1);
    const label = chosen && chosen.value !== "" ? Number(chosen.value) : null;
    return { seed: seed("seed"), other: seed("other-seed"), place: element("place").valueAsNumber, label };
  }

  const inTurn = (num, first = 0) => Array.from({ length: num }, (_, i) => (first + i) % config.classes.length);
  const labelsFor = (label, num, first) => config.classes && (label === null ? inTurn(num, first) : Array(num).fill(label));

  // Draw all items with the controls' settings, some at a time, by all workers; stop after FRAME where the settings have changed.
  async function pass() {
    const { seed, other, place, label } = wanted();
    const num = items();
    layOut(num);
    canvases.forEach((canvas) => canvas.classList.toggle("stale", IS_IMAGE));
    tell(seed, other, place, label, num);
    const size = IS_IMAGE ? clamp(Math.round(CHUNK / pace), 1, Math.ceil(num / workers.length)) : num;
    const began = performance.now();
    let next = 0;
    await Promise.all(
      workers.map(async (ask) => {
        while (next < num && !(isWanted && performance.now() - began > FRAME)) {
          const first = next;
          next = Math.min(num, next + size);
          const rows = Array.from({ length: next - first }, (_, i) => rowBetween(seed, other, place, first + i));
          const labels = labelsFor(label, rows.length, first);
          const { samples, milliseconds } = await run(ask, { ...packed(rows), labels });
          time(milliseconds / rows.length);
          show(samples, labels, first);
        }
      }),
    );
  }

  // Describe in words, for the caption and for screen readers, what is drawn.
  function tell(seed, other, place, label, num) {
    const whose = config.classes ? (label === null ? ", each class in turn" : ` of the class ${config.classes[label]}`) : "";
    const from = place === 0 ? `of seed ${seed}` : place === 1 ? `of seed ${other}` : `between the seeds ${seed} and ${other}`;
    element("caption").textContent = `${num.toLocaleString("en")} ${config.item}s${whose}, from noise ${from}`;
    picture.setAttribute("aria-label", element("caption").textContent);
    const [a, here, b] = [0, place, 1].map((at) => norm(rowBetween(seed, other, at, 0).subarray(0, LATENT)).toFixed(1));
    element("length").textContent = `The noise of the first ${config.item} is ${here} long (A ${a}, B ${b}).`;
    element("place").setAttribute("aria-valuetext", `${Math.round(100 * place)}% of the way from noise A to noise B`);
  }

  let turn = Promise.resolve();
  // Run `draw` after all drawings that were queued before.
  const queued = (draw) => (turn = turn.then(draw, draw));

  let [isWanted, isDrawing] = [false, false];
  // Draw with the controls' settings, and again for as long as they have changed during the last drawing.
  async function redraw() {
    isWanted = true;
    if (isDrawing || !workers.length) return;
    isDrawing = true;
    try {
      while (isWanted) {
        isWanted = false;
        await queued(pass);
      }
    } catch (error) {
      fail(error);
    }
    isDrawing = false;
  }

  // Draw from given noise, show the samples, and return them [B, ...shape]. Without labels the classes are taken in turn.
  async function draw({ labels, ...given }) {
    await ready;
    const num = given.latents.length / LATENT;
    if (!Number.isInteger(num) || num < 1) throw new Error(`latents holds ${given.latents.length} numbers; give ${LATENT} for each item`);
    const unknown = Object.keys(given).filter((name) => given[name].length && !INPUTS.some((input) => input.name === name));
    if (unknown.length) throw new Error(`this generator draws from ${INPUTS.map(({ name }) => name).join(", ")}, and not from ${unknown}`);
    const asked = { labels: labels ?? (config.classes && inTurn(num)) };
    for (const { name, count, size } of INPUTS) {
      asked[name] = Float32Array.from(given[name] ?? []);
      if (asked[name].length !== count * num * size) throw new Error(`${name} holds ${asked[name].length} numbers; give ${count * num * size}`);
    }
    return queued(async () => {
      layOut(num);
      const { samples, milliseconds } = await run(workers[0], asked);
      show(samples, asked.labels, 0);
      return { samples, shape: [num, ...config.shape], milliseconds };
    });
  }

  // ---- the walk

  const WALK = 6000; // milliseconds from A to B
  let frame = null; // the requested animation frame while the walk runs

  // Move the slider from where it is to B, back to A, and so on.
  function walkOn() {
    const began = performance.now() - element("place").valueAsNumber * WALK;
    const step = () => {
      const way = ((performance.now() - began) / WALK) % 2;
      element("place").value = way < 1 ? way : 2 - way;
      redraw();
      frame = requestAnimationFrame(step);
    };
    frame = requestAnimationFrame(step);
  }

  function walk(isOn) {
    cancelAnimationFrame(frame);
    frame = null;
    if (isOn) walkOn();
    element("walk").textContent = isOn ? "Stop" : "Walk";
  }

  function listen() {
    for (const control of document.querySelectorAll("input, select")) control.addEventListener("input", redraw);
    for (const event of ["pointerdown", "input"]) element("place").addEventListener(event, () => walk(false));
    element("walk").addEventListener("click", () => walk(frame === null));
    for (const name of ["seed", "other-seed"]) {
      element(`new-${name}`).addEventListener("click", () => {
        element(name).value = crypto.getRandomValues(new Uint32Array(1))[0] % 1e6;
        redraw();
      });
    }
    isNarrow.addEventListener("change", redraw);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => IS_IMAGE || scatter());
  }

  // ---- beginning

  // Whether the page was opened from the disk, where browsers let it load nothing; if so, show how to serve it.
  function isFromDisk() {
    if (location.protocol !== "file:") return false;
    const folder = decodeURIComponent(location.pathname.replace(/\/[^/]*$/, ""));
    const code = Object.assign(document.createElement("code"), { textContent: `python -m http.server -d '${folder}' 8000` });
    element("message").append("Browsers do not let a page on disk load its model: run ", code, " and open http://localhost:8000.");
    element("message").hidden = false;
    return true;
  }

  async function begin() {
    layOut(items());
    element("loading").textContent = config.loading;
    const [script, wasm, model] = await Promise.all(["script", "wasm", "model"].map((name) => fetched(config.files[name])));
    files = { script: new Blob([script], { type: "text/javascript" }), wasm, model };
    await addWorker();
    const one = () => run(workers[0], { ...packed([rowOf(1, 0)]), labels: [0] });
    await one(); // the first run is slower than all others
    pace = Infinity;
    for (let i = 0; i < 3; i++) pace = Math.min(pace, (await one()).milliseconds);
    if (IS_IMAGE) await makeRoom();
    element("loading").textContent = "";
  }

  // Start more workers where one is slow, and set how many lines this machine draws within PASS.
  async function makeRoom() {
    const most = config.files.model.bytes < LARGE ? clamp((navigator.hardwareConcurrency || 2) - 1, 1, 4) : 1;
    if (items() * pace > SLOW) await Promise.all(Array.from({ length: most - 1 }, addWorker));
    lines = Math.max(1, Math.floor((PASS * workers.length) / pace / columns()));
  }

  const ready = isFromDisk() ? new Promise(() => {}) : begin();
  window.fewstep = {
    config,
    ready,
    draw,
    noise: (seed, num) => packed(Array.from({ length: num }, (_, i) => rowOf(seed, i))),
    between: (seed, other, place, num) => packed(Array.from({ length: num }, (_, i) => rowBetween(seed, other, place, i))),
  };
  listen();
  ready.then(redraw, fail);
})();
