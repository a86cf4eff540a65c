// Elements made of text only: nothing that an agent chose is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((each) => each !== null && each !== undefined));
  return element;
}

export const h = (name, attributes = {}, ...children) =>
  fill(document.createElement(name), attributes, children);
export const s = (name, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, name), attributes, children);

export const card = (title, ...children) => h("section", { class: "card" }, h("h2", {}, title), children);

// Text of this page with commands between backticks.
export const said = (text) =>
  text.split("`").map((part, place) => (place % 2 ? h("code", {}, part) : part));

export const notice = (kind, title, text) =>
  h("div", { class: `notice ${kind}`, role: kind === "bad" ? "alert" : "status" }, h("strong", {}, title), said(text));

export const empty = (title, text) => h("div", { class: "notice" }, h("strong", {}, title), said(text));

// columns: [title, row => child, numeric]; on a phone each row becomes a block with the titles beside the values.
export function table(caption, columns, rows) {
  const cell = (row, [title, of, numeric]) =>
    h("td", { "data-label": title, class: numeric ? "number" : null }, of(row));
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h("table", { class: "stack" },
      h("caption", {}, caption),
      h("thead", {}, h("tr", {}, columns.map(([title, , numeric]) =>
        h("th", { scope: "col", class: numeric ? "number" : null }, title)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, columns.map((column) => cell(row, column)))))));
}

export function field(label, name, options = null) {
  const value = new URLSearchParams(location.search).get(name) ?? "";
  const input = options
    ? h("select", { name }, options.map(([each, text]) =>
        h("option", { value: each, selected: each === value }, text)))
    : h("input", { name, value, autocomplete: "off", spellcheck: "false" });
  return h("label", {}, label, input);
}

// Dates as everybody reads them, in the browser's time zone; made once, since making one takes longer than using it.
const CLOCK = new Intl.DateTimeFormat("sv", { timeStyle: "medium" });
const DAY = new Intl.DateTimeFormat("sv", { dateStyle: "short", timeStyle: "medium" });

export const time = (milliseconds) =>
  h("time", { datetime: new Date(milliseconds).toISOString(), title: new Date(milliseconds).toISOString() },
    CLOCK.format(milliseconds) + "." +
      String(milliseconds % 1000).padStart(3, "0"));

export const moment = (milliseconds) =>
  h("time", { datetime: new Date(milliseconds).toISOString() }, DAY.format(milliseconds));

export const number = (value) => value.toLocaleString("en");
export const rate = (value) => (value === null ? "–" : value.toFixed(1));
export const mono = (text) => h("span", { class: "mono" }, text);
export const message = (id) =>
  id ? h("a", { class: "mono", href: `/message/${encodeURIComponent(id)}` }, id.length > 14 ? `${id.slice(0, 12)}…` : id) : "–";
export const decision = (row) =>
  h("span", { class: row.refused ? "bad" : "good" }, row.decision, row.refused && row.rule ? ` (${row.rule})` : "");

// Whether the address asks for less than everything.
export const filtered = () => [...new URLSearchParams(location.search).values()].some(Boolean);

// The columns that every table of calls about tokens begins with.
export const TOKEN_CALL = [
  ["time", (row) => time(row.time)],
  ["by", (row) => row.sender],
  ["about", (row) => row.target],
  ["what", (row) => row.act],
  ["for", (row) => row.purpose || "–"],
  ["tool", (row) => row.tool || "–"],
];
