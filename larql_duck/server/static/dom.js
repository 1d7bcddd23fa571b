// Elements made from data. Text always becomes a text node: nothing that a model says is read as markup.

/** An element. `props` starting with "on" are listeners, "class", "dataset" and attributes are set as such; children are
 * elements, texts, or lists of these; null and false are left out. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

export function replace(element, ...children) {
  element.replaceChildren();
  append(element, children);
}

/** Tell those who listen rather than look. */
export function announce(text) {
  document.getElementById("status").textContent = text;
}

let ids = 0;
export function freshId(prefix) {
  ids += 1;
  return `${prefix}-${ids}`;
}

/** A number short enough to read; "–" for none. */
export function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(digits)));
}

/** How many of a thing: "1 row", "2 rows". */
export function counted(n, thing) {
  return `${number(n)} ${thing}${n === 1 ? "" : "s"}`;
}

export function percent(value) {
  if (value === null || value === undefined) return "–";
  if (value > 0 && value < 0.001) return "< 0.1 %";
  return `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`;
}

/** A token with its blanks to be seen. */
export function visible(token) {
  if (token === null || token === undefined) return "–";
  return String(token).replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");
}

/** A bar as long as a share from 0 to 1, with its figure. */
export function bar(share, text) {
  const fill = h("span", { class: "fill" });
  fill.style.inlineSize = `${Math.max(0, Math.min(1, share ?? 0)) * 100}%`;
  return h("span", { class: "bar" }, h("span", { class: "track", "aria-hidden": "true" }, fill), h("span", { class: "figure" }, text));
}

/** A table with a caption and columns {name, right, wide: not on a phone}, in a frame that scrolls by itself where the page is narrow. */
export function table(caption, columns, rows, { unseen = false } = {}) {
  const id = freshId("caption");
  return h("div", { class: "frame", tabindex: "0", role: "region", "aria-labelledby": id },
    h("table", {},
      h("caption", { id, class: unseen ? "unseen" : null }, caption),
      h("thead", {}, h("tr", {}, columns.map((c) => h("th", { scope: "col", class: [c.right ? "right" : "", c.wide ? "wide" : ""].join(" ").trim() || null }, c.name)))),
      h("tbody", {}, rows)));
}

export function notes(texts) {
  return texts.length ? h("ul", { class: "notes" }, texts.map((text) => h("li", {}, text))) : null;
}

export function failure(error) {
  return h("p", { class: "failure", role: "alert" }, error.message);
}
