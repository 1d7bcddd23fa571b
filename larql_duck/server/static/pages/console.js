// A console for LQL and SQL, with completion and history; results are tables whose names and features are links.

import { post } from "../api.js";
import { announce, counted, failure, h, notes, number, replace, table, visible } from "../dom.js";
import { address, entityLink, featureLink } from "../links.js";

const HISTORY = "larql-duck-history";
const KEPT = 50;
const SHOWN = 200;
const NAMES = new Set(["subject", "object", "entity", "target", "other"]);
const EXAMPLES = ['DESCRIBE "France"', "FROM who('capital', 'Paris')", "SELECT relation, count(*) AS n FROM facts GROUP BY relation ORDER BY n DESC", "FROM help()"];

function past() {
  try {
    return JSON.parse(localStorage.getItem(HISTORY) ?? "[]");
  } catch {
    return [];
  }
}

export async function show(content, { model, text, language, signal, title }) {
  title("Console");
  const results = h("div", { "aria-live": "polite" });
  const list = h("ul", { id: "completions", role: "listbox", "aria-label": "Completions", hidden: true });
  let proposals = [];
  let chosen = -1;
  let back = 0;
  let request = new AbortController();
  let timer;
  const field = h("textarea", { id: "statement", rows: "3", spellcheck: "false", autocomplete: "off", autocapitalize: "off", value: text, maxlength: "8000",
    "aria-controls": "completions", "aria-autocomplete": "list", "aria-haspopup": "listbox" });
  const sql = h("select", { id: "language" }, h("option", { value: "lql" }, "LQL"), h("option", { value: "sql" }, "SQL"));
  sql.value = language;
  const close = () => {
    clearTimeout(timer);
    request.abort();
    list.hidden = true;
    chosen = -1;
    field.removeAttribute("aria-activedescendant");
  };
  const take = (proposal) => {
    const at = field.selectionStart;
    const before = field.value.slice(0, at - proposal.length) + proposal.text;
    field.value = before + field.value.slice(at);
    field.setSelectionRange(before.length, before.length);
    close();
    field.focus();
  };
  const choose = (index) => {
    chosen = index;
    [...list.children].forEach((item, i) => item.setAttribute("aria-selected", String(i === index)));
    if (index < 0) field.removeAttribute("aria-activedescendant");
    else {
      field.setAttribute("aria-activedescendant", `completion-${index}`);
      list.children[index].scrollIntoView({ block: "nearest" });
    }
  };
  const propose = async (asked = false) => {
    const before = field.value.slice(0, field.selectionStart);
    request.abort();
    if (!asked && !/[\w"']$/.test(before)) return close();
    request = new AbortController();
    try {
      proposals = (await post(model, "explorer/complete", { text: before }, request.signal)).completions.slice(0, 30);
    } catch {
      return undefined;
    }
    replace(list, proposals.map((p, i) => h("li", { role: "option", id: `completion-${i}`, "aria-selected": "false", onmousedown: (event) => {
      event.preventDefault();
      take(p);
    } }, p.text, p.about ? h("span", { class: "quiet" }, ` ${p.about}`) : null)));
    list.hidden = proposals.length === 0;
    choose(-1);
    return undefined;
  };
  const recall = (step) => {
    const entries = past();
    back = Math.max(0, Math.min(entries.length, back + step));
    field.value = back ? entries[entries.length - back] : "";
    close();
  };
  const run = async () => {
    const statement = field.value.trim();
    if (!statement) return;
    close();
    back = 0;
    localStorage.setItem(HISTORY, JSON.stringify([...past().filter((entry) => entry !== statement), statement].slice(-KEPT)));
    history.replaceState(null, "", address.console(model, statement, sql.value));
    const card = h("article", { class: "card" }, h("pre", {}, statement), h("p", { class: "quiet" }, "Running …"));
    results.prepend(card);
    try {
      const answer = await post(model, "explorer/run", { statement, language: sql.value }, signal);
      replace(card, h("pre", {}, statement), shown(model, statement, answer));
      announce(counted(answer.rows.length, "row"));
    } catch (error) {
      if (error.name === "AbortError") throw error;
      replace(card, h("pre", {}, statement), failure(error));
      mark(field, error);
    }
  };
  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(propose, 120);
  });
  field.addEventListener("blur", close);
  field.addEventListener("keydown", (event) => {
    const opened = !list.hidden;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      run();
    } else if (event.key === "Escape") close();
    else if (event.key === " " && event.ctrlKey) {
      event.preventDefault();
      propose(true);
    } else if (opened && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      event.preventDefault();
      const step = event.key === "ArrowDown" ? 1 : -1;
      choose(chosen < 0 && step < 0 ? proposals.length - 1 : (chosen + step + proposals.length) % proposals.length);
    } else if (opened && chosen >= 0 && (event.key === "Enter" || event.key === "Tab")) {
      event.preventDefault();
      take(proposals[chosen]);
    } else if (event.altKey && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
      event.preventDefault();
      recall(event.key === "ArrowUp" ? 1 : -1);
    }
  });
  content.append(
    h("h1", { tabindex: "-1" }, "Console"),
    h("form", { class: "panel console", onsubmit: (event) => {
      event.preventDefault();
      run();
    } },
      h("label", { for: "statement" }, "One statement"), h("div", { class: "completing" }, field, list),
      h("p", { class: "row" }, h("label", { for: "language" }, "Language"), sql, h("button", {}, "Run"),
        h("span", { class: "quiet" }, h("kbd", {}, "Ctrl"), "+", h("kbd", {}, "Enter"), " runs, ", h("kbd", {}, "Ctrl"), "+", h("kbd", {}, "Space"), " completes, ", h("kbd", {}, "Alt"), "+", h("kbd", {}, "↑"), " brings back what was run. In LQL “x” is text, in SQL a name."))),
    h("p", { class: "row" }, h("span", { class: "quiet" }, "For example:"), EXAMPLES.map((example) => h("button", { class: "plain", type: "button", onclick: () => {
      field.value = example;
      field.focus();
    } }, h("code", {}, example)))),
    results);
  return () => (text ? run() : undefined);
}

/** A result as a table, its first rows at first. */
function shown(model, statement, answer) {
  const { columns, rows } = answer;
  if (!columns.length) return [notes(answer.notices) ?? h("p", { class: "quiet" }, "Done.")];
  const slot = [columns.indexOf("layer"), columns.indexOf("feature")];
  const cell = (row, i) => {
    const value = row[i];
    if (value === null) return h("td", { class: "quiet" }, "NULL");
    if (typeof value === "string" && NAMES.has(columns[i])) return h("td", {}, entityLink(model, value));
    if (i === slot[1] && slot[0] >= 0 && Number.isInteger(row[slot[0]])) return h("td", {}, featureLink(model, row[slot[0]], value));
    if (typeof value === "number") return h("td", { class: "right" }, number(value, 4));
    if (Array.isArray(value)) return h("td", {}, value.map((v) => (v === null || typeof v !== "object" ? visible(v) : JSON.stringify(v))).join(", "));
    return h("td", {}, typeof value === "object" ? JSON.stringify(value) : String(value));
  };
  const body = (most) => rows.slice(0, most).map((row) => h("tr", {}, columns.map((_, i) => cell(row, i))));
  const right = (i) => rows.some((row) => typeof row[i] === "number");
  const frame = table(`Result of ${statement.slice(0, 60)}`, columns.map((name, i) => ({ name, right: right(i) })), body(SHOWN), { unseen: true });
  const all = rows.length > SHOWN ? h("button", { class: "plain", onclick: () => {
    replace(frame.querySelector("tbody"), body(rows.length));
    all.remove();
  } }, `Show all ${rows.length} rows`) : null;
  return [frame, h("p", { class: "quiet" }, `${counted(rows.length, "row")}, ${number(answer.latency_ms)} ms`), all, notes(answer.notices)];
}

/** Put the cursor where the server says that the statement is wrong. */
function mark(field, error) {
  if (!error.line || !error.column) return;
  const before = field.value.split("\n").slice(0, error.line - 1).join("\n").length + (error.line > 1 ? 1 : 0) + error.column - 1;
  field.focus();
  field.setSelectionRange(before, Math.min(field.value.length, before + 1));
}
