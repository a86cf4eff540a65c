import { poll } from "./api.js";
import { TOKEN_CALL, card, decision, empty, h, message, number, table } from "./dom.js";

const COUNTS = [
  ["what", (row) => row.act],
  ["for", (row) => row.purpose || "–"],
  ["decision", (row) => h("span", { class: row.rule ? "bad" : "good" }, row.decision)],
  ["check", (row) => row.rule || "–"],
  ["count", (row) => number(row.count), true],
];

const NEWEST = [
  ...TOKEN_CALL,
  ["decision", decision],
  ["call", (row) => message(row.message_id)],
];

export async function show({ place, failed, named }) {
  await poll("tokens", 2000, (found) => {
    named(found);
    place.replaceChildren(...(found.newest.length
      ? [card("Given, used and refused", table(`Among the newest ${number(found.among)} decisions`, COUNTS, found.counts)),
         card("Calls", table("The newest first", NEWEST, found.newest))]
      : [empty("No call about tokens.", `Nobody asked for a token or used one in the newest ${number(found.among)} decisions.`)]));
    document.querySelector("main").dataset.ready = "yes";
  }, failed);
}
