"use strict";

const at = id => document.getElementById(id);
const ms = value => `${value < 10 ? value.toFixed(2) : value.toFixed(0)} ms`;
let about = null; // what /v1/model says
let picture = null; // the file that was chosen
let asking = null; // the request under way, which a newer one ends
const MOST_ROWS = 20; // of a legend
const MOST_SIDE = 1024; // of the mask that is drawn: browsers scale it to the picture

async function introduce() {
  const response = await fetch("v1/model");
  if (!response.ok) throw new Error((await response.json()).error);
  about = await response.json();
  at("model").textContent = about.name;
  const masks = about.task === "segment";
  const what = about.classes === null ? "feature maps" : `${masks ? "masks of " : ""}${about.classes} classes`;
  const size = `${about.any_size ? "any size within " : ""}${about.size.join("x")} pixels`;
  at("facts").textContent =
    `SepViT-${about.variant}, ${size}, ${what}, batches of up to ${about.max_batch}; ` +
    `version ${about.version}, SHA-256 ${about.sha256.slice(0, 12)}...`;
  document.title = `${about.name}: try a picture`;
  at("untrained").hidden = !about.untrained;
  at("limits").textContent =
    `JPEG, PNG, WebP, BMP or TIFF, at most ${about.max_body_mb} MB and ${about.max_megapixels} megapixels.`;
  at("v2").href = `v2/models/${encodeURIComponent(about.name)}`;
  at("v2").textContent = `/v2/models/${about.name}`;
  at("curl").textContent = masks
    ? `curl --data-binary @photo.jpg --output mask.png ${location.origin}/v1/segment`
    : `curl --data-binary @photo.jpg ${location.origin}/v1/classify`;
  at("tops").hidden = masks;
  at("veils").hidden = !masks;
  if (about.classes === null) {
    at("file").disabled = true;
    fail("This model gives feature maps, no classes: ask it by the protocol, not by this page.");
  }
}

function fail(text) {
  at("error").textContent = text;
  at("error").hidden = false;
  at("answer").hidden = true;
  at("status").textContent = "";
}

function choose(file) {
  if (!file || at("file").disabled) return;
  picture = file;
  URL.revokeObjectURL(at("preview").src);
  at("preview").src = URL.createObjectURL(file);
  const verb = about && about.task === "segment" ? "segmented" : "classified";
  at("preview").alt = `The picture that is ${verb}, ${file.name || "pasted"}`;
  at("preview").hidden = false;
  at("mask").hidden = true;
  at("again").disabled = false;
  ask();
}

// Browsers show no TIFF: then there is an answer without a picture.
at("preview").addEventListener("error", () => { at("preview").hidden = true; });

async function ask() {
  if (!picture) return;
  if (asking) asking.abort();
  at("error").hidden = true;
  if (about && picture.size > about.max_body_mb * 1e6) {
    fail(`The picture has ${(picture.size / 1e6).toFixed(1)} MB, and the server takes at most ${about.max_body_mb} MB.`);
    return;
  }
  const mine = (asking = new AbortController());
  document.body.classList.add("busy");
  at("status").textContent = "Asking ...";
  const began = performance.now();
  try {
    const masks = about && about.task === "segment";
    const response = await fetch(masks ? "v1/segment" : `v1/classify?top=${at("top").value}`, {
      method: "POST", body: picture, signal: mine.signal,
      headers: { "Content-Type": "application/octet-stream", Accept: "application/json" },
    });
    const answer = await response.json();
    if (response.ok) (masks ? showMask : showClasses)(answer, performance.now() - began);
    else fail(`${inWords(response.status)}: ${answer.error}.`);
  } catch (error) {
    if (mine.signal.aborted) return;
    fail("The server does not answer. Is it still running?");
  } finally {
    if (asking === mine) document.body.classList.remove("busy");
  }
}

function inWords(status) {
  if (status === 413) return "The picture is too large";
  if (status === 503) return "The server is busy; try again in a moment";
  return status < 500 ? "The picture was not taken" : "The server failed";
}

function rowOf({ class: number, label, score, share, colour }) {
  const part = score === undefined ? share : score;
  const row = document.createElement("li");
  const line = row.appendChild(document.createElement("div"));
  const name = line.appendChild(document.createElement("span"));
  name.className = "label";
  name.textContent = label === null ? `class ${number}` : label;
  const text = line.appendChild(document.createElement("span"));
  text.className = "score";
  text.textContent = `${(part * 100).toFixed(1)} %`;
  const track = row.appendChild(document.createElement("div"));
  track.className = "track";
  const bar = track.appendChild(document.createElement("div"));
  bar.className = "bar";
  bar.style.width = `${part * 100}%`;
  if (colour) {
    const chip = document.createElement("i");
    chip.style.background = bar.style.background = `rgb(${colour.join(" ")})`;
    name.prepend(chip);
  }
  return row;
}

function showClasses(answer, seen_ms) {
  at("classes").replaceChildren(...answer.classes.map(rowOf));
  showTimes(answer, seen_ms);
  const best = answer.classes[0];
  at("status").textContent =
    `${best.label === null ? `Class ${best.class}` : best.label}, ${(best.score * 100).toFixed(1)} %, in ${ms(seen_ms)}.`;
}

function showMask(answer, seen_ms) {
  const { classes } = answer;
  at("classes").replaceChildren(...classes.slice(0, MOST_ROWS).map(rowOf));
  at("rest-of-classes").hidden = classes.length <= MOST_ROWS;
  at("rest-of-classes").textContent = `and ${classes.length - MOST_ROWS} more, of few pixels each`;
  draw(answer);
  showTimes(answer, seen_ms);
  at("status").textContent =
    `${classes.length === 1 ? "One class" : `${classes.length} classes`} in ${answer.width} x ${answer.height} pixels, in ${ms(seen_ms)}.`;
}

// The mask's runs to pixels of a canvas, which is smaller than a large picture.
function draw({ height, width, runs, classes }) {
  const colours = new Map(classes.map(({ class: number, colour }) => [number, colour]));
  const scale = Math.min(1, MOST_SIDE / Math.max(height, width));
  const canvas = at("mask");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  let run = 0;
  let end = runs[0][1]; // of the run, counted in the mask's pixels
  for (let y = 0; y < canvas.height; y++) {
    const row = Math.floor(((y + 0.5) * height) / canvas.height) * width;
    for (let x = 0; x < canvas.width; x++) {
      const pixel = row + Math.floor(((x + 0.5) * width) / canvas.width);
      while (pixel >= end) end += runs[++run][1];
      image.data.set([...colours.get(runs[run][0]), 255], 4 * (y * canvas.width + x));
    }
  }
  context.putImageData(image, 0, 0);
  canvas.hidden = false;
}

function showTimes(answer, seen_ms) {
  const { queue_ms, compute_ms, total_ms } = answer.timings;
  const rest_ms = Math.max(0, total_ms - queue_ms - compute_ms);
  for (const [name, value] of Object.entries({ queue: queue_ms, compute: compute_ms, rest: rest_ms })) {
    at(name).textContent = ms(value);
    document.querySelector(`#split .${name}`).style.flex = `${value} 0 0`;
  }
  at("total").textContent = ms(total_ms);
  at("seen").textContent = ms(seen_ms);
  at("batch").textContent = answer.batch;
  at("version").textContent = answer.version;
  at("answer").hidden = false;
  if (about && answer.version !== about.version) introduce().catch(() => {}); // a new file took over
}

at("file").addEventListener("change", event => choose(event.target.files[0]));
at("top").addEventListener("change", ask);
at("again").addEventListener("click", ask);
at("veil").addEventListener("input", () => { at("mask").style.opacity = at("veil").value / 100; });
at("mask").style.opacity = at("veil").value / 100;
document.addEventListener("paste", event => choose(event.clipboardData.files[0]));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, event => {
    event.preventDefault(); // a picture beside the field must not replace the page
    at("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") choose(event.dataTransfer.files[0]);
  });
}
introduce()
  .catch(error => fail(`The server does not say what it serves: ${error.message}`))
  .finally(() => document.documentElement.setAttribute("data-ready", ""));
