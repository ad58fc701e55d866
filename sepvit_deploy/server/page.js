"use strict";

const at = id => document.getElementById(id);
const ms = value => `${value < 10 ? value.toFixed(2) : value.toFixed(0)} ms`;
let about = null; // what /v1/model says
let picture = null; // the file that was chosen
let asking = null; // the request under way, which a newer one ends

async function introduce() {
  const response = await fetch("v1/model");
  if (!response.ok) throw new Error((await response.json()).error);
  about = await response.json();
  at("model").textContent = about.name;
  const what = about.classes === null ? "feature maps" : `${about.classes} classes`;
  at("facts").textContent =
    `SepViT-${about.variant}, ${about.size.join("x")} pixels, ${what}, batches of up to ${about.max_batch}; ` +
    `version ${about.version}, SHA-256 ${about.sha256.slice(0, 12)}...`;
  document.title = `${about.name}: try a picture`;
  at("untrained").hidden = !about.untrained;
  at("limits").textContent =
    `JPEG, PNG, WebP, BMP or TIFF, at most ${about.max_body_mb} MB and ${about.max_megapixels} megapixels.`;
  at("v2").href = `v2/models/${encodeURIComponent(about.name)}`;
  at("v2").textContent = `/v2/models/${about.name}`;
  at("curl").textContent = `curl --data-binary @photo.jpg ${location.origin}/v1/classify`;
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
  at("preview").alt = `The picture that is classified, ${file.name || "pasted"}`;
  at("preview").hidden = false;
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
    const response = await fetch(`v1/classify?top=${at("top").value}`, {
      method: "POST", body: picture, headers: { "Content-Type": "application/octet-stream" }, signal: mine.signal,
    });
    const answer = await response.json();
    if (response.ok) show(answer, performance.now() - began);
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

function show(answer, seen_ms) {
  const rows = answer.classes.map(({ class: number, label, score }) => {
    const row = document.createElement("li");
    const line = row.appendChild(document.createElement("div"));
    const name = line.appendChild(document.createElement("span"));
    name.className = "label";
    name.textContent = label === null ? `class ${number}` : label;
    const share = line.appendChild(document.createElement("span"));
    share.className = "score";
    share.textContent = `${(score * 100).toFixed(1)} %`;
    const track = row.appendChild(document.createElement("div"));
    track.className = "track";
    const bar = track.appendChild(document.createElement("div"));
    bar.className = "bar";
    bar.style.width = `${score * 100}%`;
    return row;
  });
  at("classes").replaceChildren(...rows);
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
  const best = answer.classes[0];
  at("status").textContent =
    `${best.label === null ? `Class ${best.class}` : best.label}, ${(best.score * 100).toFixed(1)} %, in ${ms(seen_ms)}.`;
  if (about && answer.version !== about.version) introduce().catch(() => {}); // a new file took over
}

at("file").addEventListener("change", event => choose(event.target.files[0]));
at("top").addEventListener("change", ask);
at("again").addEventListener("click", ask);
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
