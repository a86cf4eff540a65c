import { poll } from "./api.js";
import { card, empty, h, mono, moment, number, rate, table } from "./dom.js";

function instances(row) {
  return row.running.length
    ? h("ul", { class: "plain" }, row.running.map((each) =>
        h("li", {}, mono(each.instance), each.seen ? h("span", { class: "quiet" }, " said hello ", moment(Date.parse(each.seen))) : null)))
    : h("span", { class: "quiet" }, "not running");
}

const capabilities = (row) => [...new Set(row.running.flatMap((each) => each.capabilities))].sort().join(", ") || "–";

const COLUMNS = [
  ["agent", (row) => h("strong", {}, row.agent)],
  ["instances", instances],
  ["capabilities", capabilities],
  ["in/s", (row) => rate(row.rate_in), true],
  ["out/s", (row) => rate(row.rate_out), true],
  ["in flight", (row) => number(row.in_flight), true],
  ["again", (row) => number(row.redelivered), true],
  ["pending", (row) => number(row.pending), true],
  ["dead", (row) => row.dead_letters ? h("a", { class: "bad", href: `/dead-letters?agent=${row.agent}` }, number(row.dead_letters)) : "0", true],
  ["refused", (row) => row.refused ? h("a", { href: `/audit?sender=${row.agent}` }, number(row.refused)) : "0", true],
  ["state at", (row) => row.state_revision === null ? "unknown" : row.state_revision ? `revision ${number(row.state_revision)}` : "–"],
  ["circuit", (row) => h("span", { class: row.circuit === "closed" ? null : "bad" }, row.circuit)],
  ["last call", (row) => row.last_decision ? moment(row.last_decision) : "–"],
];

export async function show({ place, failed, named }) {
  await poll("agents", 2000, (found) => {
    named(found);
    place.replaceChildren(found.agents.length
      ? card("Who is there", table("in/s: deliveries, repeated ones too; out/s: accepted messages; refused: since the workers began; state at: its newest revision", COLUMNS, found.agents))
      : empty("There are no agents yet.", "Apply a manifest: `mas apply mas.yaml`. Then run them: `mas run`."));
    document.querySelector("main").dataset.ready = "yes";
  }, failed);
}
