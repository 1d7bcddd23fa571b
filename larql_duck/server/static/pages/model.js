// One vindex: what it holds, what it was asked, whom it knows most of.

import { get } from "../api.js";
import { bar, h, notes, number, percent, table } from "../dom.js";
import { address, entityLink } from "../links.js";

export async function show(content, { model, about, signal, title }) {
  title(model);
  const [stats, overview] = await Promise.all([get(model, "stats", {}, signal), get(model, "explorer/overview", {}, signal)]);
  const right = new Map(overview.accuracy.map((row) => [row.relation, row]));
  const figures = [
    ["model", stats.model], ["family", stats.family], ["layers", stats.layers], ["features", stats.features],
    ["level", stats.extract_level], ["facts", stats.counts.facts],
  ].filter(([, value]) => value !== undefined && value !== null);
  content.append(
    h("h1", { tabindex: "-1" }, model),
    about.infer ? "" : h("p", { class: "hint" }, about.level === "browse"
      ? "This vindex holds no weights: what is stored can be looked at, and the model cannot be run."
      : "This server shows what is stored and does not run the model."),
    h("dl", { class: "figures" }, figures.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, number(value))))),
    h("section", {}, h("h2", {}, "Names that most is known of"),
      overview.entities.length
        ? h("ul", { class: "chips" }, overview.entities.map((row) => h("li", {}, entityLink(model, row.entity))))
        : h("p", { class: "quiet" }, "No facts are stored. larql-duck probe asks the model for them.")),
    overview.relations.length ? h("section", {}, h("h2", {}, "Relations"),
      table("Relations that the model was asked about", [{ name: "relation" }, { name: "facts", right: true }, { name: "right, of those with a reference" }, { name: "for example", wide: true }],
        overview.relations.map((row) => {
          const judged = right.get(row.relation);
          return h("tr", {},
            h("th", { scope: "row" }, h("a", { href: address.console(model, `FROM relation_facts('${row.relation.replaceAll("'", "''")}') LIMIT 50`) }, row.relation)),
            h("td", { class: "right" }, number(row.n_facts)),
            h("td", {}, judged ? bar(judged.share, `${percent(judged.share)} of ${judged.judged}`) : "–"),
            h("td", { class: "wide" }, (row.examples?.[0] ?? "–").slice(0, 120)));
        }), { unseen: true })) : "",
    notes(overview.notices) ?? "");
}
