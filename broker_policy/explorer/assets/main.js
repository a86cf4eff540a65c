// Which page this address is, and what is common to all.

import { get } from "./api.js";
import { h, notice } from "./dom.js";

const PAGES = [
  [/^\/$/, "overview", "Overview"],
  [/^\/topology$/, "topology", "Topology"],
  [/^\/live$/, "live", "Live decisions"],
  [/^\/message\/(.+)$/, "message", "Message"],
  [/^\/agents$/, "agents", "Agents"],
  [/^\/dead-letters$/, "dead_letters", "Dead letters"],
  [/^\/audit$/, "audit", "Audit"],
  [/^\/tokens$/, "tokens", "Tokens and tool checks"],
];

const main = document.querySelector("main");
const problem = h("div", {});

function failed(error) {
  problem.replaceChildren(...(error ? [notice("bad", error.message, error.fix)] : []));
}

for (const link of document.querySelectorAll("nav a")) {
  if (link.pathname === location.pathname) link.setAttribute("aria-current", "page");
}

const [pattern, name, title] = PAGES.find(([each]) => each.test(location.pathname));
const place = h("div", { id: "page" });
document.title = `${title} · MAS explorer`;
main.replaceChildren(h("h1", {}, title), problem, place);

function named(document_) {
  if (document_) document.getElementById("namespace").textContent = document_.namespace;
}

const { show } = await import(`./${name}.js`);
try {
  await show({ place, failed, named, argument: decodeURIComponent(location.pathname.match(pattern)[1] ?? ""), get });
} catch (error) {
  if (!("fix" in error)) throw error;
  failed(error);
}
main.dataset.ready = "yes";
