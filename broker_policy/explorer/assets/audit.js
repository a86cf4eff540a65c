import { card, decision, empty, field, filtered, h, message, mono, moment, notice, number, said, table } from "./dom.js";

const OUTCOMES = ["", "unsettled", "refused", "committed", "not_committed", "applied", "failed", "duplicate",
  "redelivered", "handled", "dead", "expired", "unknown"].map((each) => [each, each || "all"]);

const COLUMNS = [
  ["entry", (row) => number(row.index), true],
  ["time", (row) => moment(row.time)],
  ["call", (row) => row.op],
  ["from", (row) => row.sender],
  ["to", (row) => row.target],
  ["decision", decision],
  ["outcome", (row) => row.outcome],
  ["message", (row) => message(row.message_id)],
  ["hash", (row) => h("span", { class: "mono", title: row.hash }, row.hash.slice(0, 12))],
];

function verified(report) {
  const what = `${number(report.entries)} entries, ${number(report.decisions)} decisions and ${number(report.checkpoints)} checkpoints, in ${report.seconds} s. ` +
    (report.signed_index ? `Signed up to entry ${number(report.signed_index)}.` : "No checkpoint covers any entry yet.");
  const aside = report.unexamined_segments.length
    ? [notice("", "Not examined: sealed segments.", `Entries up to ${number(report.unexamined_segments.at(-1).last)} left Redis; check them with \`mas audit verify --segments\`.`)]
    : [];
  if (report.intact) return [notice("good", "✓ The audit is intact.", what), ...aside];
  const count = report.findings.length + report.more_findings;
  return [
    notice("bad", `✗ The audit is NOT intact: ${number(count)} findings.`, `${what} Compare with a backup or an export, and find out who could write to Redis or the log.`),
    ...aside,
    table("What was found", [
      ["kind", (row) => h("strong", {}, row.kind)],
      ["entry", (row) => (row.index ? number(row.index) : "–"), true],
      ["what", (row) => row.text],
    ], report.findings.slice(0, 100)),
  ];
}

function verification(get) {
  const result = h("div", { id: "verification", "aria-live": "polite" },
    h("p", { class: "quiet" }, "Checks the whole chain, its indexes and outcomes, against itself and against the signed checkpoints."));
  const button = h("button", { type: "button", onclick: async () => {
    button.disabled = true;
    result.replaceChildren(h("p", {}, "Verifying … (a million entries take a minute or so)"));
    try {
      result.replaceChildren(...verified(await get("verify")));
    } catch (error) {
      result.replaceChildren(notice("bad", error.message, error.fix ?? ""));
    }
    button.disabled = false;
  } }, "Verify the audit");
  return card("Integrity", result, button);
}

function checkpoints(rows) {
  if (!rows.length) return h("p", { class: "quiet" }, "None yet: the signer makes them when there is something to sign.");
  return table("Checkpoints, the newest first", [
    ["up to entry", (row) => number(row.index), true],
    ["time", (row) => moment(row.time)],
    ["signature", (row) => h("span", { class: row.valid ? "good" : "bad" }, row.valid ? "valid" : "NOT VALID")],
    ["key", (row) => mono(row.key)],
    ["hash", (row) => h("span", { class: "mono", title: row.hash }, row.hash.slice(0, 16))],
  ], rows);
}

export async function show({ place, named, get }) {
  const fields = Object.fromEntries(new URLSearchParams(location.search));
  const decisions = h("div", {}, h("p", { class: "quiet" }, "loading …"));
  const signed = h("div", {});
  place.replaceChildren(
    verification(get),
    card("Decisions",
      h("form", {}, field("from", "sender"), field("to", "target"), field("decision", "decision"),
        field("rule", "violation"), field("outcome", "outcome", OUTCOMES), field("message id", "message_id"),
        field("since (2h, or a date)", "from"), h("button", {}, "Search")),
      decisions),
    card("Checkpoints", signed));
  const listed = get("checkpoints", { limit: 10 });
  listed.catch(() => {}); // it is awaited below, after what may fail first
  const found = await get("decisions", fields);
  named(found);
  decisions.replaceChildren(
    found.decisions.length
      ? table("Decisions, the newest first", COLUMNS, found.decisions)
      : empty("No decision fits.", filtered() ? "Clear a field, or look further back." : "Run agents: `mas run`, or send a message: `mas send`."),
    ...(found.next ? [h("p", {}, h("a", { href: `?${new URLSearchParams({ ...fields, cursor: found.next })}` }, "Older ones"))] : []),
    ...(found.removed ? [h("p", { class: "quiet" }, said(`Entries up to ${number(found.removed)} are in sealed segments: \`mas audit query --segments\`.`))] : []));
  signed.replaceChildren(checkpoints((await listed).checkpoints));
}
