import { decision, empty, field, filtered, h, message, said, table, time } from "./dom.js";

const KEPT = 200;
const KINDS = [["", "all"], ["refused", "refused"], ["ALLOWED", "ALLOWED"], ["AUTHZ_DENIED", "AUTHZ_DENIED"],
  ["DLP_BLOCKED", "DLP_BLOCKED"], ["DLP_REDACTED", "DLP_REDACTED"], ["RATE_LIMITED", "RATE_LIMITED"],
  ["CIRCUIT_OPEN", "CIRCUIT_OPEN"], ["INVALID", "INVALID"]];

const COLUMNS = [
  ["time", (row) => time(row.time)],
  ["from", (row) => row.sender],
  ["to", (row) => row.target],
  ["call", (row) => row.op],
  ["type", (row) => row.type],
  ["bytes", (row) => row.size, true],
  ["decision", decision],
  ["message", (row) => message(row.message_id)],
];

export async function show({ place, failed, named }) {
  const state = h("p", { class: "quiet", role: "status" }, "connecting …");
  const list = h("div", { class: "card" });
  const pause = h("button", { type: "button", "aria-pressed": "false" }, "Pause");
  const filters = h("form", {}, field("from", "sender"), field("to", "target"), field("decision", "decision", KINDS),
    h("button", {}, "Filter"), pause);
  place.replaceChildren(filters, state, list);
  let rows = [];
  let paused = false;
  let wanted = false;

  function draw() {
    wanted = false;
    if (paused) return;
    list.replaceChildren(rows.length
      ? table("The newest first", COLUMNS, rows)
      : empty("Nothing to show yet.", filtered()
          ? "Nothing that fits the filter was decided lately: clear a field."
          : "Decisions appear here as they are made: run agents (`mas run`), or send (`mas send`)."));
  }
  function soon() {
    if (!wanted) setTimeout(draw, 100);
    wanted = true;
  }
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on" : "Pause";
    draw();
  });

  const events = new EventSource(`/api/live${location.search}`);
  let newest = 0;
  events.onmessage = (event) => {
    const row = JSON.parse(event.data);
    if (row.index <= newest) return;
    newest = row.index;
    rows = [row, ...rows].slice(0, KEPT);
    soon();
  };
  await new Promise((shown) => {
    events.addEventListener("ready", (event) => {
      named(JSON.parse(event.data));
      state.textContent = "live";
      failed(null);
      draw();
      shown();
    });
    events.onerror = () => {
      state.replaceChildren(...said(events.readyState === EventSource.CLOSED
        ? "not connected: refused. Load this page again, it says why."
        : "not connected: trying again. Look whether `mas explorer` still runs."));
      shown();
    };
  });
}
