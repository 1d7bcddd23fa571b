// The explorer: reads the address, shows its page, and lets links change both without loading anew.

import { models, ServerError, setKey } from "./api.js";
import { recolour } from "./charts.js";
import { announce, failure, h, replace } from "./dom.js";
import { address, read } from "./links.js";
import { search } from "./search.js";

const PAGES = {
  home: () => import("./pages/home.js"),
  model: () => import("./pages/model.js"),
  entity: () => import("./pages/entity.js"),
  feature: () => import("./pages/feature.js"),
  infer: () => import("./pages/infer.js"),
  console: () => import("./pages/console.js"),
};
const main = document.getElementById("main");
let known = [];
let leaving = new AbortController();

/** Go to an address of this site, in place of the one at hand if `instead`. */
export function open(to, { instead = false } = {}) {
  history[instead ? "replaceState" : "pushState"](null, "", to);
  show();
}

async function show({ focus = true } = {}) {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const place = read(location);
  const model = known.find((m) => m.id === place.model);
  header(place, model);
  replace(main, h("p", { class: "quiet" }, "Loading …"));
  try {
    if (place.model && !model) throw new ServerError(404, { error: `no vindex ${place.model} is served here; there is: ${known.map((m) => m.id).join(", ")}` });
    if (!PAGES[place.page]) throw new ServerError(404, { error: "there is no such page" });
    const page = await PAGES[place.page]();
    const context = { ...place, signal, open, about: model, models: known, title: (text) => { document.title = `${text} · larql-duck`; } };
    const content = h("div", { class: "page" });
    const after = await page.show(content, context);
    if (signal.aborted) return;
    replace(main, content);
    announce(document.title);
    if (focus) (main.querySelector("h1") ?? main).focus({ preventScroll: false });
    main.dataset.page = place.page;
    // What needs room on the page (a graph, a chart), or more answers.
    await after?.();
  } catch (error) {
    if (error.name === "AbortError" || signal.aborted) return;
    if (error.status === 401) askForKey();
    else replace(main, h("h1", { tabindex: "-1" }, "That did not work"), failure(error), h("p", {}, h("a", { href: "/" }, "To the first page")));
  }
}

function askForKey() {
  const field = h("input", { id: "key", type: "password", autocomplete: "off", required: true });
  const form = h("form", { class: "panel", onsubmit: (event) => {
    event.preventDefault();
    setKey(field.value);
    start();
  } }, h("label", { for: "key" }, "Key of this server"), field, h("button", {}, "Use it"));
  replace(main, h("h1", { tabindex: "-1" }, "This server asks for a key"), form, h("p", { class: "quiet" }, "It is kept in this tab until the tab is closed."));
  field.focus();
}

function header(place, model) {
  const links = model ? [
    [address.model(model.id), "Overview", "model"], [address.infer(model.id, ""), "Infer", "infer"], [address.console(model.id), "Console", "console"],
  ] : [];
  replace(document.getElementById("header"),
    h("a", { href: "/", class: "brand" }, "larql-duck"),
    model ? h("a", { href: address.model(model.id), class: "model" }, model.id) : null,
    model ? search(model.id, open) : null,
    h("nav", { "aria-label": "Pages" }, links.map(([to, text, page]) => h("a", { href: to, "aria-current": place.page === page ? "page" : null }, text))),
    themeButton());
}

const THEMES = ["auto", "light", "dark"];

function themeButton() {
  const now = () => localStorage.getItem("larql-duck-theme") ?? "auto";
  const button = h("button", { class: "plain", onclick: () => {
    localStorage.setItem("larql-duck-theme", THEMES[(THEMES.indexOf(now()) + 1) % THEMES.length]);
    applyTheme();
    button.textContent = `Theme: ${now()}`;
    recolour();
  } }, `Theme: ${now()}`);
  return button;
}

function applyTheme() {
  document.documentElement.dataset.theme = localStorage.getItem("larql-duck-theme") ?? "auto";
}

async function start() {
  applyTheme();
  try {
    known = (await models()).data;
  } catch (error) {
    header({ page: "home" });
    if (error.status === 401) askForKey();
    else replace(main, h("h1", { tabindex: "-1" }, "That did not work"), failure(error));
    return;
  }
  await show({ focus: false });
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  if (!link || event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const to = new URL(link.href);
  if (to.origin !== location.origin || to.pathname.startsWith("/v1") || (to.hash && to.pathname === location.pathname)) return;
  event.preventDefault();
  open(to.pathname + to.search);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
  const field = document.getElementById("search");
  if (field) {
    event.preventDefault();
    field.focus();
  }
});
addEventListener("popstate", () => show());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
replace(document.getElementById("footer"), "Every answer is the model's own. ", h("kbd", {}, "/"), " searches.");
start();
