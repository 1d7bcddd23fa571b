// Charts by Vega-Lite. Expressions are interpreted, so that the page's policy needs no eval.

import { theme } from "./colours.js";
import { h } from "./dom.js";

let loading;

function vega() {
  loading ??= script("/vendor/vega.min.js")
    .then(() => Promise.all([script("/vendor/vega-lite.min.js"), import("/vendor/vega-interpreter.js")]))
    .then(([, { expressionInterpreter }]) => ({ vega: globalThis.vega, vegaLite: globalThis.vegaLite, expressionInterpreter }));
  return loading;
}

function script(source) {
  return new Promise((done, failed) => {
    const element = document.createElement("script");
    element.src = source;
    element.onload = done;
    element.onerror = () => failed(new Error(`${source} did not load`));
    document.head.append(element);
  });
}

const drawn = new Map();

/** A frame for a chart, which scrolls by itself; the label says in words what the chart shows. */
export function chart(label) {
  return h("div", { class: "chart", role: "img", tabindex: "0", "aria-label": label }, h("div", { "aria-hidden": "true" }));
}

/** Draw the specification that `spec(colours)` gives into a frame, and anew when the colours change. */
export async function draw(frame, spec) {
  drawn.set(frame, spec);
  await redraw(frame);
}

/** Draw every chart that is still in the page again, in the colours of now. */
export async function recolour() {
  for (const element of [...drawn.keys()]) {
    if (element.isConnected) await redraw(element);
    else drawn.delete(element);
  }
}

async function redraw(frame) {
  const { vega: v, vegaLite, expressionInterpreter } = await vega();
  const colour = theme();
  const colours = {
    text: colour("ink"), quiet: colour("quiet"), line: colour("line"), accent: colour("accent"),
    low: colour("heat-low"), high: colour("heat-high"),
  };
  const config = {
    background: null,
    font: "system-ui, sans-serif",
    axis: { labelColor: colours.text, titleColor: colours.text, gridColor: colours.line, domainColor: colours.line, tickColor: colours.line },
    legend: { labelColor: colours.text, titleColor: colours.text },
    view: { stroke: null },
  };
  const compiled = vegaLite.compile(drawn.get(frame)(colours), { config }).spec;
  const view = new v.View(v.parse(compiled, null, { ast: true }), { expr: expressionInterpreter, renderer: "canvas", container: frame.firstElementChild, hover: true });
  await view.runAsync();
  frame.dataset.drawn = "true";
}

/** Black or white, whichever can be read on a share of the way from one colour to the other: one of them always can. */
function inkOn(low, high, share) {
  const [from, to] = [low, high].map((text) => text.match(/[\d.]+/g).slice(0, 3).map(Number));
  const linear = from.map((c, i) => (c + share * (to[i] - c)) / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#000" : "#fff";
}

/** The logit lens: a cell for every layer and position, coloured by the probability of the token that stands in it; `room` in pixels. */
export function lensSpec(rows, room) {
  const positions = new Set(rows.map((row) => row.position));
  const step = Math.max(54, Math.min(96, (room - 96) / positions.size));
  return (colours) => ({
    data: { values: rows.map((row) => ({ ...row, ink: inkOn(colours.low, colours.high, row.probability) })) },
    width: { step },
    height: { step: 17 },
    encoding: {
      // Each position is its own column, whatever token stands there twice.
      x: { field: "column", type: "ordinal", sort: null, title: null, axis: { orient: "top", labelAngle: 0, labelLimit: step - 4 } },
      y: { field: "layer", type: "ordinal", sort: "descending", title: "layer", axis: { labelExpr: "datum.value < 0 ? 'embedding' : datum.label" } },
      tooltip: [
        { field: "layer", title: "layer" }, { field: "column", title: "behind" }, { field: "shown", title: "would say" },
        { field: "probability", title: "probability", format: ".3p" },
      ],
    },
    layer: [
      { mark: { type: "rect" }, encoding: { color: { field: "probability", type: "quantitative", scale: { domain: [0, 1], range: [colours.low, colours.high], interpolate: "rgb" }, legend: { title: "probability", orient: "bottom", format: ".0%", gradientLength: 160 } } } },
      { mark: { type: "text", fontSize: 11, limit: step - 6 }, encoding: { text: { field: "shown" }, color: { condition: { test: "datum.ink === '#000'", value: "#000" }, value: "#fff" } } },
    ],
  });
}

/** How often a feature's activation fell into each of 64 bins, which are powers of two around 0. */
export function histogramSpec(counts) {
  const half = counts.length / 2;
  const edge = (i) => i < half ? `-2^${13 - i}` : `2^${i - half - 17}`;
  const values = counts.map((count, bin) => ({ bin, count, label: edge(bin), sign: bin < half ? "negative" : "positive" }));
  return (colours) => ({
    data: { values },
    width: 420,
    height: 90,
    mark: "bar",
    encoding: {
      x: { field: "bin", type: "ordinal", axis: { labels: false, ticks: false, title: "activation, by powers of two: negative left, positive right" } },
      y: { field: "count", type: "quantitative", scale: { type: "symlog" }, axis: { title: "tokens", tickCount: 3 } },
      color: { field: "sign", type: "nominal", scale: { domain: ["negative", "positive"], range: [colours.quiet, colours.accent] }, legend: null },
      tooltip: [{ field: "label", title: "from" }, { field: "count", title: "tokens" }],
    },
  });
}
