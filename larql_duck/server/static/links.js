// Permanent addresses, and links to them.

import { h } from "./dom.js";

const part = encodeURIComponent;
// Characters of a name that a link shows.
const SHOWN = 120;

// A browser takes . and .. out of a path, even encoded; the server takes no path with what cannot be printed.
const NOT_IN_PATHS = /^\.{0,2}$|[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u;

export const address = {
  home: () => "/",
  model: (model) => `/m/${part(model)}`,
  entity: (model, name) => NOT_IN_PATHS.test(name) ? `/m/${part(model)}/entity/?name=${part(name)}` : `/m/${part(model)}/entity/${part(name)}`,
  feature: (model, layer, feature) => `/m/${part(model)}/feature/${layer}/${feature}`,
  infer: (model, prompt, off = []) => {
    const query = new URLSearchParams(prompt ? { prompt } : {});
    if (off.length) query.set("off", off.join(","));
    return `/m/${part(model)}/infer${query.size ? `?${query}` : ""}`;
  },
  console: (model, text = "", language = "lql") => `/m/${part(model)}/console${text ? `?q=${part(text)}${language === "sql" ? "&language=sql" : ""}` : ""}`,
};

export function entityLink(model, name) {
  const long = name.length > SHOWN;
  return h("a", { href: address.entity(model, name), title: long ? name.slice(0, 2000) : null }, name === "" ? "(empty)" : long ? `${name.slice(0, SHOWN)}…` : name);
}

export function featureLink(model, layer, feature) {
  return h("a", { href: address.feature(model, layer, feature), class: "slot" }, `${layer} · ${feature}`);
}

/** What an address names: {page, model, ...}. */
export function read(location) {
  const parts = location.pathname.split("/").filter((p, i, all) => p !== "" || i === all.length - 1).map(decode);
  const query = new URLSearchParams(location.search);
  if (parts[0] !== "m" || !parts[1]) return { page: "home" };
  const [, model, page = "", first = "", second = ""] = parts;
  if (page === "") return { page: "model", model };
  if (page === "entity") return { page, model, name: query.get("name") ?? parts.slice(3).join("/") };
  if (page === "feature") return { page, model, layer: Number(first), feature: Number(second) };
  if (page === "infer") return { page, model, prompt: query.get("prompt") ?? "", off: (query.get("off") ?? "").split(",").filter((slot) => /^\d+\.\d+$/.test(slot)) };
  if (page === "console") return { page, model, text: query.get("q") ?? "", language: query.get("language") === "sql" ? "sql" : "lql" };
  return { page: "unknown", model };
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
