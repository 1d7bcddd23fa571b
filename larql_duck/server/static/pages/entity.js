// One name: what it is, its facts with the features behind each, the facts that point to it, its neighbours.

import { get, lql, quoted } from "../api.js";
import { announce, bar, counted, freshId, h, notes, number, percent, replace, table, visible } from "../dom.js";
import { drawGraph } from "../graph.js";
import { address, entityLink, featureLink } from "../links.js";

const NEIGHBOURS = 40;
// Features behind a fact that are listed at first.
const FEATURES = 8;
const LONGEST = 20;

export async function show(content, context) {
  const { model, name, about, signal, title, open } = context;
  title(name);
  const stored = await get(model, "explorer/entity", { name }, signal);
  const real = stored.names[0]?.entity ?? name;
  const body = h("div");
  const types = h("p", { class: "types" });
  content.append(h("h1", { tabindex: "-1" }, real.length > 300 ? `${real.slice(0, 300)}…` : real), types, body);
  const out = stored.facts.filter((row) => row.direction === "out");
  const draw = (facts, features, kinds, notices) => {
    replace(types, kinds.length ? ["Seems to be: ", kinds.map((row) => h("span", { class: "chip" }, `${row.type} `, h("span", { class: "quiet" }, percent(row.p))))] : "");
    replace(body, notes(notices), sections(model, real, facts, features, about.infer));
  };
  const asks = !out.length && about.infer;
  draw(stored.facts, stored.features, stored.types, asks ? [] : stored.notices);
  if (asks) body.prepend(h("p", { class: "hint", id: "asking" }, "Nothing is stored about this name; the model is asked now …"));
  const graph = h("div", { class: "graph", role: "img", "aria-label": `Graph of the neighbours of ${real}; the same triples are listed below it` });
  const list = h("details", {}, h("summary", {}, "The same as a list"));
  const around = h("section", { hidden: true }, h("h2", {}, "Neighbours"), graph, list);
  content.append(around);
  return async () => {
    await Promise.all([
      asks ? live(context, real, stored, draw, body) : null,
      stored.names.length ? neighbours(around, graph, list, context, real, signal, open) : null,
    ]);
  };
}

/** Ask the model about a name: facts and types first, then the features, for which it runs longer. */
async function live({ model, signal }, name, stored, draw, body) {
  let facts = stored.facts;
  try {
    const answered = await get(model, "explorer/live", { name, part: "facts" }, signal);
    facts = answered.facts;
    draw(facts, [], answered.types, answered.notices);
    announce(`The model was asked about ${name}`);
    if (!facts.some((row) => row.direction === "out")) return;
    const button = h("button", { onclick: async () => {
      button.disabled = true;
      button.textContent = "Measuring …";
      const measured = await get(model, "explorer/live", { name, part: "features" }, signal);
      draw(facts, measured.features, answered.types, measured.notices);
    } }, "Measure the features behind these answers");
    body.prepend(h("p", {}, button));
  } catch (error) {
    if (error.name === "AbortError") throw error;
    draw(facts, [], stored.types, [error.message]);
  }
}

function sections(model, name, facts, features, weights) {
  const out = facts.filter((row) => row.direction === "out" && row.source !== "weights");
  const into = facts.filter((row) => row.direction === "in");
  const behind = new Map();
  for (const row of features) {
    const key = JSON.stringify([row.relation, row.object]);
    behind.set(key, [...(behind.get(key) ?? []), row]);
  }
  return [
    h("section", {}, h("h2", {}, "Facts"), out.length
      ? table(`What the model says of ${name}`, [{ name: "relation" }, { name: "answer" }, { name: "confidence" }, { name: "p", right: true, wide: true }, { name: "source", wide: true }, { name: "features" }],
        out.flatMap((row) => factRows(model, name, row, behind.get(JSON.stringify([row.relation, row.target])) ?? [], weights)), { unseen: true })
      : h("p", { class: "quiet" }, "No fact is known.")),
    into.length ? h("section", {}, h("h2", {}, "Facts that point to it"),
      table(`Facts whose answer is ${name}`, [{ name: "subject" }, { name: "relation" }, { name: "confidence" }, { name: "p", right: true }],
        into.map((row) => h("tr", {}, h("th", { scope: "row" }, entityLink(model, row.target)), h("td", {}, row.relation),
          h("td", {}, row.confidence === null ? "–" : bar(row.confidence, percent(row.confidence))), h("td", { class: "right" }, number(row.p)))), { unseen: true })) : null,
  ];
}

/** Tokens in a row; of a long one its beginning. */
function pieces(tokens) {
  return (tokens ?? []).map(visible).map((token) => (token.length > LONGEST ? `${token.slice(0, LONGEST)}…` : token)).join(", ");
}

function factRows(model, name, row, features, weights) {
  const id = freshId("behind");
  const button = features.length ? h("button", { class: "plain", "aria-expanded": "false", "aria-controls": id, "aria-label": `${counted(features.length, "feature")} behind it`, onclick: () => {
    const shown = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!shown));
    more.hidden = shown;
  } }, String(features.length), h("span", { class: "wide" }, " behind it")) : "–";
  const columns = ["feature", "effect", "score", "activates on", "promotes"];
  const rows = (most) => features.slice(0, most).map((f) => h("tr", {}, h("th", { scope: "row" }, featureLink(model, f.layer, f.feature)),
    h("td", { class: "right" }, number(f.effect)), h("td", { class: "right wide" }, number(f.score)),
    h("td", { class: "pieces" }, pieces(f.activates_on)), h("td", { class: "pieces" }, pieces(f.down_tokens))));
  const body = h("tbody", {}, rows(FEATURES));
  const all = features.length > FEATURES ? h("button", { class: "plain", onclick: () => {
    replace(body, rows(features.length));
    all.remove();
  } }, `Show all ${features.length}`) : null;
  const more = h("tr", { id, hidden: true, class: "more" }, h("td", { colspan: "6" },
    h("div", { class: "frame", tabindex: "0", role: "region", "aria-label": `Features behind ${row.relation}` }, h("table", {}, h("caption", { class: "unseen" }, `Features behind ${row.relation} of ${name}`),
      h("thead", {}, h("tr", {}, columns.map((text) => h("th", { scope: "col", class: text === "score" ? "wide" : null }, text)))),
      body)), all,
    h("p", { class: "quiet" }, "effect: how much log p of the answer falls when the feature is switched off.",
      weights ? [" ", h("a", { href: address.infer(model, `The ${row.relation} of ${name} is`, features.slice(0, 3).map((f) => `${f.layer}.${f.feature}`)) }, "Try it in INFER")] : null)));
  return [
    h("tr", {}, h("th", { scope: "row" }, row.relation), h("td", {}, entityLink(model, row.target), row.also?.length ? h("span", { class: "quiet" }, ` also ${row.also.join(", ")}`) : null),
      h("td", {}, row.confidence === null ? "–" : bar(row.confidence, percent(row.confidence))), h("td", { class: "right wide" }, number(row.p)), h("td", { class: "wide" }, row.source), h("td", {}, button)),
    features.length ? more : null,
  ];
}

async function neighbours(section, graph, list, { model }, name, signal, open) {
  const { rows } = await lql(model, `NEIGHBORS OF ${quoted(name)} HOPS 2 |> SELECT * FROM _ WHERE relation <> 'associated with' LIMIT ${NEIGHBOURS}`, signal);
  if (!rows.length) return;
  section.hidden = false;
  list.append(h("ul", {}, rows.map((t) => h("li", {}, entityLink(model, t.subject), ` ${t.relation} `, entityLink(model, t.object)))));
  await drawGraph(graph, model, name, rows, open);
}
