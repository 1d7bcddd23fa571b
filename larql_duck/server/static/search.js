// The field for names: a combobox whose list holds stored names that begin like what was typed.

import { get } from "./api.js";
import { counted, h, replace } from "./dom.js";
import { address } from "./links.js";

export function search(model, open) {
  let request = new AbortController();
  let timer;
  let options = [];
  let chosen = -1;
  const list = h("ul", { id: "names", role: "listbox", "aria-label": "Stored names", hidden: true });
  const field = h("input", {
    id: "search", type: "search", role: "combobox", "aria-expanded": "false", "aria-controls": "names", "aria-autocomplete": "list",
    "aria-label": "Name", placeholder: "A name, as in France", autocomplete: "off", spellcheck: "false", maxlength: "200",
  });
  const close = () => {
    clearTimeout(timer);
    request.abort();
    list.hidden = true;
    chosen = -1;
    field.setAttribute("aria-expanded", "false");
    field.removeAttribute("aria-activedescendant");
  };
  const go = (name) => {
    close();
    field.value = "";
    open(address.entity(model, name));
  };
  const choose = (index) => {
    chosen = index;
    [...list.children].forEach((item, i) => item.setAttribute("aria-selected", String(i === index)));
    if (index < 0) field.removeAttribute("aria-activedescendant");
    else field.setAttribute("aria-activedescendant", `name-${index}`);
  };
  const suggest = async () => {
    const start = field.value.trim();
    request.abort();
    if (!start) return close();
    request = new AbortController();
    try {
      options = (await get(model, "explorer/suggest", { start }, request.signal)).entities;
    } catch {
      return;
    }
    replace(list, options.map((row, i) => h("li", { role: "option", id: `name-${i}`, "aria-selected": "false", onmousedown: (event) => {
      event.preventDefault();
      go(row.entity);
    } }, row.entity, h("span", { class: "quiet" }, ` ${counted(row.n_facts, "fact")}`))));
    list.hidden = options.length === 0;
    field.setAttribute("aria-expanded", String(options.length > 0));
    choose(-1);
  };
  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(suggest, 80);
  });
  field.addEventListener("blur", close);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    if (list.hidden || !["ArrowDown", "ArrowUp"].includes(event.key)) return;
    event.preventDefault();
    const step = event.key === "ArrowDown" ? 1 : -1;
    choose((chosen + step + options.length + (chosen < 0 && step < 0 ? 1 : 0)) % options.length);
  });
  const form = h("form", { role: "search", class: "search", onsubmit: (event) => {
    event.preventDefault();
    const name = chosen >= 0 ? options[chosen].entity : field.value;
    if (name.trim()) go(name);
  } }, field, list, h("button", {}, "Show"));
  return form;
}
