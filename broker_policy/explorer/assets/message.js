import { TOKEN_CALL, card, decision, h, message, mono, notice, number, table, time } from "./dom.js";

const WORDS = { policy_revision: "policy revision", log_sequence: "log sequence", sequence: "sequence" };

function fact([name, value]) {
  return [h("dt", {}, WORDS[name] ?? name), h("dd", {}, name === "hash" || name === "commitment" || name === "key" ? mono(value) : String(value))];
}

function life(one, several) {
  const steps = one.steps.map((step) =>
    h("li", { class: step.state }, h("span", { class: "name" }, step.name),
      step.time ? h("span", { class: "quiet" }, time(step.time), " ") : null, step.text,
      Object.keys(step.facts).length ? h("dl", { class: "facts" }, Object.entries(step.facts).map(fact)) : null));
  return card(several ? `${one.op}, entry ${one.index}` : "Its life",
    h("p", {}, `${one.sender} → ${one.target}, ${one.op} of type `, mono(one.type || "–"), `, ${number(one.size)} bytes. `,
      decision(one), `, ${one.outcome}.`,
      one.trace_id ? [" Trace ", mono(one.trace_id), "."] : null),
    h("ol", { class: "life" }, steps));
}

const CHECKS = [
  ...TOKEN_CALL,
  ["decision", (row) => h("span", { class: row.refused ? "bad" : "good" }, row.decision)],
  ["rule", (row) => row.rule || "–"],
];

function unsent(checks) {
  const refused = checks.some((each) => each.refused);
  return notice("", "No message of this id is in the audit.", refused
    ? "Calls about tokens were made for it, and one was refused: then a sidecar sends nothing."
    : "Calls about tokens were made for it: the message is yet to come, or none comes, as where a language model is asked.");
}

export async function show({ place, named, argument, get }) {
  document.querySelector("h1").replaceChildren("Message ", mono(argument));
  const found = await get(`message/${encodeURIComponent(argument)}`);
  named(found);
  const unfinished = found.decisions.some((each) => !each.complete);
  place.replaceChildren(
    ...(found.decisions.length ? [] : [unsent(found.checks)]),
    ...found.decisions.map((each) => life(each, found.decisions.length > 1)),
    ...(found.more ? [notice("", "There is more.", `Only the oldest decisions about this id are shown: \`mas audit query --message-id\` has all.`)] : []),
    ...(unfinished ? [notice("", "It goes on.", "What happens next is shown when this page is loaded again.")] : []),
    card("Token checks and tool checks", found.checks.length
      ? table("Calls about tokens that were made for this message", CHECKS, found.checks)
      : h("p", { class: "quiet" }, "none: nobody asked for a token for it")),
    card("Related", found.related.length
      ? table("Requests and replies", [
          ["time", (row) => time(row.time)],
          ["call", (row) => row.op],
          ["from", (row) => row.sender],
          ["to", (row) => row.target],
          ["decision", decision],
          ["message", (row) => message(row.message_id)],
        ], found.related)
      : h("p", { class: "quiet" }, found.related_complete ? "no reply, and no request that it answers" : "no request that it answers was found among the latest of its sender: older ones were not looked at")),
    h("p", { class: "quiet" }, "Times after the decision are those at which it was recorded, which may be a moment later. Payloads are not kept in the audit and never shown here; the commitment proves which it was."));
}
