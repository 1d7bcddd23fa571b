// The vindexes that are served.

import { h, number } from "../dom.js";
import { address } from "../links.js";

export async function show(content, { models, open, title }) {
  title("Vindexes");
  if (models.length === 1) {
    open(address.model(models[0].id), { instead: true });
    return;
  }
  content.append(
    h("h1", { tabindex: "-1" }, "What is served here"),
    h("ul", { class: "cards" }, models.map((model) => h("li", {},
      h("a", { href: address.model(model.id) }, model.id),
      h("p", { class: "quiet" }, `${number(model.features)} features, level ${model.level}`)))));
}
