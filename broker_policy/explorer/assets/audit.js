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

// What was found so far; where not all was looked at, that is said first, with a way to go on from there.
function results(fields, get) {
  const place = h("div", { id: "decisions" }, h("p", { class: "quiet" }, "loading …"));
  const problem = h("div", {});
  const button = h("button", { type: "button", onclick: () => (going ? (stopped = true) : onward()) });
  let rows = [];
  let last = null;
  let going = false;
  let stopped = false;

  function take(found) {
    rows = [...rows, ...found.decisions];
    last = found;
    render();
  }

  // Until something fits, all was looked at, or the button is pressed once more.
  async function onward() {
    going = true;
    stopped = false;
    problem.replaceChildren();
    const before = rows.length;
    render();
    try {
      do take(await get("decisions", { ...fields, cursor: last.next }));
      while (!stopped && !last.complete && rows.length === before);
    } catch (error) {
      if (!("fix" in error)) throw error;
      problem.replaceChildren(notice("bad", error.message, error.fix));
    }
    going = false;
    render();
  }

  function render() {
    const focused = document.activeElement === button;
    button.textContent = going ? "Stop" : "Look further back";
    place.replaceChildren(
      problem,
      ...(last.complete ? [] : [partial(last.looked_to, button)]),
      rows.length
        ? table("Decisions, the newest first", COLUMNS, rows)
        : last.complete
          ? empty("No decision fits.", filtered() ? "Clear a field, or look further back." : "Run agents: `mas run`, or send a message: `mas send`.")
          : h("p", {}, "Nothing that fits up to there."),
      ...(last.complete && last.next ? [h("p", {}, h("a", { href: `?${new URLSearchParams({ ...fields, cursor: last.next })}` }, "Older ones"))] : []),
      ...(last.removed ? [h("p", { class: "quiet" }, said(`Entries up to ${number(last.removed)} are in sealed segments: \`mas audit query --segments\`.`))] : []));
    if (focused && button.isConnected) button.focus();
  }

  return { place, take };
}

function partial(to, button) {
  return h("div", { class: "notice wait", role: "status" },
    h("strong", {}, "Not all of the audit was looked at."),
    h("p", {}, `What is listed is complete back to entry ${number(to.index)}`, to.time ? [", of ", moment(to.time)] : null,
      ". What is older was not looked at, so that this page need not wait for it."),
    button);
}

export async function show({ place, named, get }) {
  const fields = Object.fromEntries(new URLSearchParams(location.search));
  const decisions = results(fields, get);
  const signed = h("div", {});
  place.replaceChildren(
    verification(get),
    card("Decisions",
      h("form", {}, field("from", "sender"), field("to", "target"), field("decision", "decision"),
        field("rule", "violation"), field("outcome", "outcome", OUTCOMES), field("message id", "message_id"),
        field("since (2h, or a date)", "from"), h("button", {}, "Search")),
      decisions.place),
    card("Checkpoints", signed));
  const listed = get("checkpoints", { limit: 10 });
  listed.catch(() => {}); // it is awaited below, after what may fail first
  const found = await get("decisions", fields);
  named(found);
  decisions.take(found);
  signed.replaceChildren(checkpoints((await listed).checkpoints));
}
