// Segments an image in the browser. After each, the document gets a "segmented" event whose detail is
// {labels: Int32Array, width, height}, for pages that build on this one.
import * as ort from "./onnxruntime-web/ort.wasm.bundle.min.mjs";

// Longest side, beyond which an image is scaled down: memory in a browser is short.
const LONGEST = 1280;
const SHORTEST = 32;

const find = (id) => document.getElementById(id);
const status = (text) => { find("status").textContent = text; };
const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));

ort.env.wasm.numThreads = 1; // more need headers that plain servers do not send
ort.env.wasm.wasmPaths = { wasm: new URL("./onnxruntime-web/ort-wasm-simd-threaded.wasm", import.meta.url).href };

let about, session, shown;

async function start() {
  if (location.protocol === "file:") {
    status("Serve this folder (python3 -m http.server), then open http://localhost:8000: browsers do not let a page that is opened as a file read its model.");
    return;
  }
  about = await (await fetch("model.json")).json();
  find("model").textContent = about.model;
  find("licence").textContent = about.licence ? `Licence of the weights: ${about.licence}.` : "";
  session = await ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] });
  status("Ready.");
}

/** Width and height at which an image goes through the model. */
function sizeFor(bitmap) {
  if (about.size) return { height: about.size[0], width: about.size[1] };
  const longest = Math.max(bitmap.width, bitmap.height);
  const factor = Math.min(1, LONGEST / longest);
  const side = (n) => Math.max(SHORTEST, Math.round(n * factor));
  return { width: side(bitmap.width), height: side(bitmap.height) };
}

async function segment(file) {
  if (!session) return;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    status("This file cannot be read as an image.");
    return;
  }
  const { width, height } = sizeFor(bitmap);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // under what is transparent
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  const rgba = context.getImageData(0, 0, width, height).data;
  const rgb = new Uint8Array(width * height * 3);
  for (let i = 0, j = 0; i < rgba.length; i += 4) {
    rgb[j++] = rgba[i]; rgb[j++] = rgba[i + 1]; rgb[j++] = rgba[i + 2];
  }
  status(`Segmenting ${width}×${height} pixels…`);
  await painted();
  const began = performance.now();
  try {
    const result = await session.run({ image: new ort.Tensor("uint8", rgb, [1, height, width, 3]) });
    shown = { rgba, labels: result.labels.data, width, height };
  } catch (error) {
    status(`The model could not run: ${error.message}`);
    return;
  }
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  status(`${width}×${height} pixels in ${seconds} s.`);
  draw();
  legend();
  find("result").hidden = false;
  const { labels } = shown;
  document.dispatchEvent(new CustomEvent("segmented", { detail: { labels, width, height } }));
}

/** The image with its classes' colours over it. */
function draw() {
  const { rgba, labels, width, height } = shown;
  const opacity = find("opacity").value / 100;
  const pixels = new Uint8ClampedArray(rgba.length);
  for (let i = 0; i < labels.length; i++) {
    const colour = about.palette[labels[i]];
    for (let c = 0; c < 3; c++) {
      pixels[4 * i + c] = (1 - opacity) * rgba[4 * i + c] + opacity * colour[c];
    }
    pixels[4 * i + 3] = 255;
  }
  const canvas = find("canvas");
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
  canvas.toBlob((blob) => {
    URL.revokeObjectURL(find("save").href);
    find("save").href = URL.createObjectURL(blob);
  });
}

/** Classes by their share of the image. */
function legend() {
  const counts = new Map();
  for (const label of shown.labels) counts.set(label, (counts.get(label) ?? 0) + 1);
  const rows = [...counts].sort((a, b) => b[1] - a[1]).map(([label, count]) => {
    const row = document.createElement("li");
    const swatch = document.createElement("i");
    swatch.style.backgroundColor = `rgb(${about.palette[label].join(" ")})`;
    const name = document.createElement("span");
    name.textContent = about.classes[label];
    const share = document.createElement("span");
    share.textContent = `${((100 * count) / shown.labels.length).toFixed(1)} %`;
    row.append(swatch, name, share);
    return row;
  });
  find("legend").replaceChildren(...rows);
}

const drop = find("drop");
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.remove("over"); });
}
document.addEventListener("drop", (event) => {
  const [file] = event.dataTransfer.files;
  if (file) segment(file);
});
find("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) segment(file);
});
find("opacity").addEventListener("input", () => { if (shown) draw(); });
start().catch((error) => status(`The model could not be loaded: ${error.message}`));
