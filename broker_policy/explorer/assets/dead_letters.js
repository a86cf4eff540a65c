import { empty, field, filtered, h, message, moment, number, said, table } from "./dom.js";

const COLUMNS = [
  ["no.", (row) => number(row.sequence), true],
  ["died", (row) => moment(row.died)],
  ["from", (row) => row.sender],
  ["agent", (row) => row.agent],
  ["type", (row) => row.type],
  ["reason", (row) => h("span", { class: "bad" }, row.reason)],
  ["error", (row) => row.error || "–"],
  ["attempts", (row) => number(row.attempts), true],
  ["redriven", (row) => number(row.redrives), true],
  ["bytes", (row) => number(row.size), true],
  ["message", (row) => message(row.message_id)],
];

export async function show({ place, named, get }) {
  const fields = Object.fromEntries(new URLSearchParams(location.search));
  place.replaceChildren(h("form", {}, field("agent", "agent"), field("from", "sender"), field("reason", "reason"), h("button", {}, "Filter")));
  const found = await get("dead-letters", fields);
  named(found);
  if (!found.dead_letters.length) {
    place.append(empty("No dead letters.", filtered() ? "None fits the filter: clear a field."
      : "Messages that no attempt could handle, or that expired, would lie here."));
    return;
  }
  place.append(h("section", { class: "card" }, table("The oldest first", COLUMNS, found.dead_letters),
    found.next ? h("p", {}, h("a", { href: `?${new URLSearchParams({ ...fields, after: found.next })}` }, "Later ones")) : null),
    h("p", { class: "quiet" }, said("Send them again with `mas dlq redrive`, remove them with `mas dlq purge`; this page changes nothing.")));
}
