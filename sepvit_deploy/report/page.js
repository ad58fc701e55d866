const { config, specs } = JSON.parse(document.getElementById("charts").textContent);
const reach = 28; // pixels from a point within which it answers a pointer

function tipOf(plot) {
  const tip = plot.querySelector(".tip");
  return {
    show(mark) {
      const label = mark.getAttribute("aria-label");
      const cut = label.indexOf(": ");
      const head = document.createElement("strong");
      head.textContent = cut < 0 ? label : label.slice(0, cut);
      tip.replaceChildren(head, document.createElement("br"), cut < 0 ? "" : label.slice(cut + 2));
      tip.hidden = false;
      const frame = plot.getBoundingClientRect();
      const at = mark.getBoundingClientRect();
      const middle = at.left + at.width / 2 - frame.left;
      const left = Math.max(0, Math.min(middle - tip.offsetWidth / 2, frame.width - tip.offsetWidth));
      const above = at.top - frame.top - tip.offsetHeight - 10;
      tip.style.left = `${left}px`;
      tip.style.top = `${above < 0 ? at.bottom - frame.top + 10 : above}px`;
    },
    hide() {
      tip.hidden = true;
    },
  };
}

// One stop of the Tab key for each chart; within it the arrow keys go from point to point.
function reachable(plot) {
  const tip = tipOf(plot);
  const marks = [...plot.querySelectorAll(".focus_marks > [aria-label], .layer_focus_marks > [aria-label]")];
  if (!marks.length) return;
  const enter = (place) => {
    for (const mark of marks) mark.setAttribute("tabindex", "-1");
    const mark = marks[(place + marks.length) % marks.length];
    mark.setAttribute("tabindex", "0");
    mark.focus();
  };
  marks.forEach((mark, place) => {
    mark.setAttribute("tabindex", place ? "-1" : "0");
    mark.addEventListener("focus", () => tip.show(mark));
    mark.addEventListener("blur", tip.hide);
    mark.addEventListener("keydown", (event) => {
      const go = { ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1, ArrowUp: place - 1, Home: 0, End: -1 };
      if (event.key === "Escape") tip.hide();
      if (!(event.key in go)) return;
      event.preventDefault();
      enter(go[event.key]);
    });
  });
  const chart = plot.querySelector(".chart");
  chart.addEventListener("pointermove", (event) => {
    let best = null;
    let least = reach;
    for (const mark of marks) {
      const box = mark.getBoundingClientRect();
      const across = Math.max(box.left - event.clientX, 0, event.clientX - box.right);
      const along = Math.max(box.top - event.clientY, 0, event.clientY - box.bottom);
      const away = Math.hypot(across, along);
      if (away < least) [best, least] = [mark, away];
    }
    if (best) tip.show(best);
    else tip.hide();
  });
  chart.addEventListener("pointerleave", tip.hide);
}

for (const [name, spec] of Object.entries(specs)) {
  const chart = document.getElementById(`chart-${name}`);
  try {
    await vegaEmbed(chart, spec, {
      mode: "vega-lite", // not to be guessed
      renderer: "svg",
      ast: true, // expressions are interpreted: the page's policy forbids to compile them
      actions: false,
      tooltip: false,
      defaultStyle: false,
      config,
    });
    reachable(chart.parentElement);
  } catch (error) {
    chart.textContent = `This chart could not be drawn (${error}); its data is in the table.`;
    console.error(name, error);
  }
}
const opened = [];
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details.keep:not([open])")) {
    folded.open = true;
    opened.push(folded);
  }
});
addEventListener("afterprint", () => {
  while (opened.length) opened.pop().open = false;
});
document.documentElement.dataset.drawn = Object.keys(specs).length;
