import { poll } from "./api.js";
import { card, decision, empty, h, message, number, s, table, time } from "./dom.js";

function bars(seconds) {
  const highest = Math.max(1, ...seconds.map((each) => each.allowed + each.refused));
  const width = 600 / seconds.length;
  const column = (each, place) => {
    const refused = (each.refused / highest) * 90;
    const accepted = (each.allowed / highest) * 90;
    return [
      s("rect", { class: "accepted", x: place * width, y: 95 - accepted, width: width - 2, height: accepted }),
      s("rect", { class: "refused", x: place * width, y: 95 - accepted - refused, width: width - 2, height: refused }),
    ];
  };
  const accepted = seconds.reduce((sum, each) => sum + each.allowed, 0);
  const refused = seconds.reduce((sum, each) => sum + each.refused, 0);
  return h("figure", {},
    s("svg", { class: "bars", viewBox: "0 0 600 100", role: "img", "aria-label":
      `In the last minute ${accepted} accepted and ${refused} refused, at most ${highest} in a second` },
      seconds.map(column), s("line", { class: "base", x1: 0, x2: 600, y1: 96, y2: 96 })),
    h("figcaption", {}, `The last minute, at most ${number(highest)} in a second; `,
      h("span", { class: "bad" }, "red: refused")));
}

const perSecond = (count, seconds) => (count / seconds).toFixed(count && count < seconds ? 2 : 1);

const figure = (name, value, kind) => h("div", {}, h("dt", {}, name), h("dd", { class: kind }, value));

function health(items) {
  return h("ul", { class: "plain" }, items.map((each) =>
    h("li", {}, h("span", { class: `state ${each.ok ? "good" : "bad"}` }, each.ok ? "✓" : "✗", ` ${each.name}`),
      each.text)));
}

function counts(caption, rows, none) {
  if (!rows.length) return h("p", { class: "quiet" }, none);
  return table(caption, [["what", (row) => row[0]], ["count", (row) => number(row[1]), true]], rows);
}

export async function show({ place, failed, named }) {
  await poll("overview", 2000, (found) => {
    named(found);
    const silent = !Object.keys(found.decisions).length;
    place.replaceChildren(
      h("dl", { class: "figures" },
        figure("accepted / s", perSecond(found.accepted, found.window)),
        figure("refused / s", perSecond(found.refused, found.window), found.refused ? "bad" : null),
        figure("agents alive", `${found.alive} / ${found.agents}`),
        figure("pending", number(found.pending)),
        figure("in flight", number(found.in_flight)),
        figure("dead letters", number(found.dead_letters), found.dead_letters ? "bad" : null)),
      ...found.notices.map((each) => h("div", { class: "notice wait" }, h("strong", {}, `${each.text}.`), `${each.fix}.`)),
      ...(silent ? [empty("Nothing was decided yet.", "Run agents: `mas run`, or send a message: `mas send`.")] : []),
      h("div", { class: "columns" },
        card("Health", health(found.health)),
        card("Decisions per second", bars(found.per_second)),
        card("Refused in the last minute", counts("By decision and rule",
          found.refusals.map((each) => [`${each.decision} ${each.rule}`, each.count]), "nothing was refused")),
        card("Decisions so far", counts("By decision", Object.entries(found.decisions), "none"))),
      card("Latest refusals", found.latest_refusals.length
        ? table("The newest first", [
            ["time", (row) => time(row.time)],
            ["from", (row) => row.sender],
            ["to", (row) => row.target],
            ["decision", decision],
            ["message", (row) => message(row.message_id)],
          ], found.latest_refusals)
        : h("p", { class: "quiet" }, "none among the newest decisions")));
    document.querySelector("main").dataset.ready = "yes";
  }, failed);
}
