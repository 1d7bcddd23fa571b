// One feature: what makes it fire, what it promotes and suppresses, its examples, the facts it carries.

import { get } from "../api.js";
import { chart, draw, histogramSpec } from "../charts.js";
import { bar, h, notes, number, percent, table, visible } from "../dom.js";
import { address, entityLink } from "../links.js";

export async function show(content, { model, layer, feature, about, signal, title }) {
  title(`Feature ${layer} · ${feature}`);
  if (!Number.isInteger(layer) || !Number.isInteger(feature)) throw new Error("a feature is named by layer and number, as in /feature/24/1005");
  const page = await get(model, "explorer/feature", { layer, feature }, signal);
  const [known] = page.about;
  const [place] = page.place;
  if (!known) throw new Error(place ? `layer ${layer} has features 0 to ${place.n_features - 1}` : `there is no layer ${layer}`);
  const side = (name) => page.tokens.filter((row) => row.side === name);
  const [usual, other] = known.sign < 0 ? ["out_neg", "out"] : ["out", "out_neg"];
  const name = page.names.find((row) => row.sign === known.sign)?.name;
  const step = (by, text) => feature + by >= 0 && feature + by < place.n_features ? h("a", { href: address.feature(model, layer, feature + by) }, text) : null;
  content.append(
    h("h1", { tabindex: "-1" }, `Layer ${layer} · feature ${feature}`),
    h("p", {}, name ? [h("strong", {}, name), " · "] : null, `${place.band ?? "no"} band`, known.relation ? ` · label ${known.relation} (${known.relation_source})` : null,
      known.relations?.length ? ` · carries ${known.relations.slice(0, 5).join(", ")}` : null),
    h("p", { class: "steps" }, step(-1, "← before"), " ", step(1, "next →"), " ",
      about.infer ? h("a", { href: address.infer(model, "", [`${layer}.${feature}`]) }, "Switch it off in INFER") : null),
    h("div", { class: "columns" },
      tokens("Activates on", side("in"), "gate value", `measured ${side("in")[0]?.basis === "embedding" ? "on the embedding alone" : "in context"}`),
      tokens("Promotes", side(usual), "cosine", known.sign < 0 ? "it mostly activates negatively, and then promotes what its down vector lowers" : null),
      tokens("Suppresses", side(other), "cosine")),
    h("section", {}, h("h2", {}, "Facts it carries"), page.facts.length
      ? table("Facts that this feature has a part in", [{ name: "subject" }, { name: "relation" }, { name: "object" }, { name: "effect", right: true }, { name: "score", right: true }, { name: "confidence" }],
        page.facts.map((row) => h("tr", {}, h("th", { scope: "row" }, entityLink(model, row.subject)), h("td", {}, row.relation), h("td", {}, entityLink(model, row.object)),
          h("td", { class: "right" }, number(row.effect)), h("td", { class: "right" }, number(row.score)), h("td", {}, row.confidence === null ? "–" : bar(row.confidence, percent(row.confidence))))), { unseen: true })
      : h("p", { class: "quiet" }, "No stored fact is carried by it.")),
    h("section", {}, h("h2", {}, "Texts that fire it"), page.examples.length
      ? h("ul", { class: "examples" }, page.examples.map((row) => h("li", {}, h("span", { class: "figure" }, number(row.activation)), " ", marked(row))))
      : h("p", { class: "quiet" }, "No examples are stored. larql-duck activations collects them.")));
  const bins = chart("Histogram of its activations; the figures stand above it");
  const [stats] = page.stats;
  if (stats) {
    content.append(h("section", {}, h("h2", {}, "How it activates"),
      h("p", {}, `It fires at ${percent(stats.density)} of ${number(stats.n)} tokens; median ${number(stats.p50)}, 99 % ${number(stats.p99)}, from ${number(stats.min)} to ${number(stats.max)}.`), bins));
  }
  content.append(notes(page.notices) ?? "");
  return async () => {
    if (stats) await draw(bins, histogramSpec(stats.histogram));
  };
}

function tokens(heading, rows, measure, remark) {
  const most = Math.max(...rows.map((row) => Math.abs(row.score)), 1e-9);
  return h("section", {}, h("h2", {}, heading), remark ? h("p", { class: "quiet" }, remark) : null, rows.length
    ? h("ol", { class: "tokens", "aria-label": `${heading}, with ${measure}` }, rows.map((row) => h("li", {}, h("code", {}, visible(row.token)), bar(Math.abs(row.score) / most, number(row.score)))))
    : h("p", { class: "quiet" }, "Not measured for this layer."));
}

/** A context whose firing token, in brackets, is marked. */
function marked(row) {
  const [context, token] = [String(row.context), `[${row.token}]`];
  const at = context.lastIndexOf(token);
  if (at < 0) return context;
  return [context.slice(0, at), h("mark", {}, row.token), context.slice(at + token.length)];
}
