// INFER: what comes next, layer by layer, which features wrote it, and what is said without them.

import { get, lql, quoted } from "../api.js";
import { chart, draw, lensSpec } from "../charts.js";
import { announce, bar, failure, h, number, percent, replace, table, visible } from "../dom.js";
import { address, featureLink } from "../links.js";

const TOP = 8;
const FEATURES = 12;
// Above so many tokens only the last ones have room in the heat map.
const POSITIONS = 24;

export async function show(content, context) {
  const { model, about, prompt, off, title } = context;
  title("Infer");
  const results = h("div");
  const field = h("textarea", { id: "prompt", rows: "2", required: true, spellcheck: "false", value: prompt, maxlength: "8000", onkeydown: (event) => {
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      form.requestSubmit();
    }
  } });
  const form = h("form", { class: "panel", onsubmit: (event) => {
    event.preventDefault();
    context.open(address.infer(model, field.value, off));
  } }, h("label", { for: "prompt" }, "What does the model say after"), field, h("button", {}, "Infer"));
  content.append(h("h1", { tabindex: "-1" }, "What comes next, and why"));
  if (!about.infer) {
    content.append(h("p", { class: "hint" }, about.level === "browse"
      ? "This vindex holds no weights, so the model cannot be run. Extract it with --level inference."
      : "This server shows what is stored and does not run the model."));
    return undefined;
  }
  content.append(form, results);
  if (!prompt) {
    results.append(h("p", { class: "quiet" }, "For example: ", h("a", { href: address.infer(model, "The capital of France is", off) }, "The capital of France is")));
    return undefined;
  }
  results.append(h("p", { class: "quiet" }, "The model runs …"));
  return () => run(results, context);
}

async function run(results, { model, prompt, off, signal, open }) {
  const text = quoted(prompt);
  let said, traced, explained, read;
  try {
    [said, traced, explained, read] = await Promise.all([
      lql(model, `INFER ${text} TOP ${TOP}`, signal),
      lql(model, `TRACE ${text} POSITIONS ALL`, signal),
      lql(model, `EXPLAIN INFER ${text} TOP 3 |> SELECT * FROM _ WHERE kind = 'feature' ORDER BY contribution DESC LIMIT ${FEATURES}`, signal),
      get(model, "explorer/tokens", { prompt }, signal),
    ]);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    replace(results, failure(error));
    return;
  }
  const cells = chart("Logit lens: the token that each layer would predict at each position, and its probability; the last position is in the table below");
  const answers = h("div");
  const switches = new Map(explained.rows.map((row) => [`${row.layer}.${row.feature}`, row]));
  for (const slot of off) {
    const [layer, feature] = slot.split(".").map(Number);
    if (!switches.has(slot)) switches.set(slot, { layer, feature, contribution: null, activates_on: null, down_tokens: null });
  }
  const without = new Set(off);
  let changes = 0;
  const change = async () => {
    const mine = ++changes;
    history.replaceState(null, "", address.infer(model, prompt, [...without]));
    if (!without.size) return showAnswers(answers, said.rows, null, without);
    answers.setAttribute("aria-busy", "true");
    try {
      const slots = [...without].map((slot) => `(${slot.replace(".", ", ")})`).join(", ");
      const now = await lql(model, `INFER ${text} TOP ${TOP} ABLATE ${slots}`, signal);
      if (mine === changes) showAnswers(answers, said.rows, now.rows, without);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      if (mine === changes) replace(answers, failure(error));
    } finally {
      if (mine === changes) answers.removeAttribute("aria-busy");
    }
  };
  const rows = lens(traced.rows, read.tokens);
  replace(results,
    h("div", { class: "columns two" },
      h("section", {}, h("h2", {}, "Answer"), answers),
      h("section", {}, h("h2", {}, "Features that wrote it"), h("p", { class: "quiet" }, "Switch one off to see the answer change."),
        h("ul", { class: "switches" }, [...switches].map(([slot, row]) => featureSwitch(model, slot, row, without, change))))),
    h("section", {}, h("h2", {}, "Layer by layer"), cells, h("details", {}, h("summary", {}, "The last position as a table"), lastPosition(rows))));
  showAnswers(answers, said.rows, null, without);
  await Promise.all([draw(cells, lensSpec(rows, cells.clientWidth)), without.size ? change() : null]);
  announce(`The model says ${said.rows[0]?.text ?? said.rows[0]?.token ?? "nothing"}`);
}

function featureSwitch(model, slot, row, without, change) {
  const button = h("button", { role: "switch", class: "switch", "aria-checked": String(!without.has(slot)), "aria-label": `Feature ${row.layer} · ${row.feature}`, onclick: () => {
    if (!without.delete(slot)) without.add(slot);
    button.setAttribute("aria-checked", String(!without.has(slot)));
    change();
  } }, h("span", { class: "knob", "aria-hidden": "true" }));
  return h("li", {}, button, featureLink(model, row.layer, row.feature),
    h("span", {}, row.down_tokens ? `promotes ${row.down_tokens.map(visible).join(", ")}` : "", row.activates_on ? h("span", { class: "quiet" }, ` · activates on ${row.activates_on.map(visible).join(", ")}`) : null),
    h("span", { class: "figure", title: "what it adds to the logit" }, row.contribution === null ? "" : `+${number(row.contribution)}`));
}

function showAnswers(element, before, after, without) {
  const was = new Map(before.map((row) => [row.token_id, row.probability]));
  const rows = after ?? before;
  const columns = [{ name: "token" }, { name: "probability" }, ...(after ? [{ name: "with all features", right: true }] : [])];
  replace(element,
    h("p", { class: "said" }, h("strong", {}, (rows[0]?.text ?? visible(rows[0]?.token)) || "–"), after ? h("span", { class: "quiet" }, ` without ${without.size} feature${without.size === 1 ? "" : "s"}; with all: ${before[0]?.text ?? visible(before[0]?.token)}`) : null),
    table("Most probable next tokens", columns, rows.map((row) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, visible(row.token))),
      h("td", {}, bar(row.probability, percent(row.probability))),
      after ? h("td", { class: "right" }, was.has(row.token_id) ? percent(was.get(row.token_id)) : `below ${percent(before.at(-1)?.probability)}`) : null)), { unseen: true }));
  if (after) announce(`Without ${without.size} features: ${rows[0]?.text ?? rows[0]?.token}, ${percent(rows[0]?.probability)}`);
}

/** Cells of the heat map: the last positions, each under the token that was read there. */
function lens(rows, tokens) {
  const last = Math.max(...rows.map((row) => row.position));
  return rows.filter((row) => row.position > last - POSITIONS).map((row) => ({
    layer: row.layer, position: row.position, column: `${row.position} ${visible(tokens[row.position])}`, shown: visible(row.top_token), probability: row.probability,
  }));
}

function lastPosition(rows) {
  const last = Math.max(...rows.map((row) => row.position));
  return table("Logit lens of the last position", [{ name: "layer" }, { name: "would say" }, { name: "probability" }],
    rows.filter((row) => row.position === last).map((row) => h("tr", {}, h("th", { scope: "row" }, row.layer < 0 ? "embedding" : row.layer), h("td", {}, h("code", {}, row.shown)), h("td", {}, bar(row.probability, percent(row.probability))))), { unseen: true });
}
