import { poll } from "./api.js";
import { empty, h, number, s, table } from "./dom.js";

const sizeOf = (nodes) => Math.min(420 + 20 * Math.max(nodes.length - 2, 0), 760); // so that few of them are large on a phone
const NODE = 24;

// On a circle in the order of names: a node keeps its place while agents stay the same.
function places(nodes) {
  const size = sizeOf(nodes);
  const radius = size / 2 - 75;
  return new Map(nodes.map((node, place) => {
    const angle = (2 * Math.PI * place) / nodes.length - Math.PI / 2;
    const wide = nodes.length > 1 ? radius : 0;
    return [node.name, { x: size / 2 + wide * Math.cos(angle), y: size / 2 + wide * Math.sin(angle), above: Math.sin(angle) < -0.1 }];
  }));
}

function curve(from, to, both) {
  if (from === to) {
    const side = from.x + NODE;
    return { d: `M${side - 3} ${from.y - 11} C${side + 60} ${from.y - 50} ${side + 60} ${from.y + 50} ${side + 5} ${from.y + 12}`,
      x: side + 104, y: from.y + 4 };
  }
  const length = Math.hypot(to.x - from.x, to.y - from.y);
  const [ux, uy] = [(to.x - from.x) / length, (to.y - from.y) / length];
  const bend = both ? 34 : 0;
  const [mx, my] = [(from.x + to.x) / 2 - uy * bend, (from.y + to.y) / 2 + ux * bend];
  const start = `M${from.x + ux * NODE} ${from.y + uy * NODE}`;
  return { d: `${start} Q${mx} ${my} ${to.x - ux * (NODE + 8)} ${to.y - uy * (NODE + 8)}`,
    x: (from.x + to.x) / 4 + mx / 2, y: (from.y + to.y) / 4 + my / 2 };
}

function edge(each, at, pairs) {
  const { d, x, y } = curve(at.get(each.from), at.get(each.to), pairs.has(`${each.to}\n${each.from}`));
  const kind = each.refused ? "refused" : each.count ? "busy" : "idle";
  const open = each.circuit === "closed" ? "" : " open";
  const label = [each.count ? (each.rate < 1 ? `${each.count}/min` : `${each.rate.toFixed(1)}/s`) : "", each.refused ? `${each.refused} refused` : ""];
  return s("g", {},
    s("title", {}, `${each.from} to ${each.to}: ${each.count} accepted, ${each.refused} refused, circuit ${each.circuit}`),
    s("path", { d, class: kind + open, "stroke-width": Math.min(1.5 + each.rate / 4, 6), "marker-end": "url(#arrow)" }),
    s("text", { x, y, class: each.refused ? "small bad" : "small" }, label.filter(Boolean).join(", ")));
}

// The name stands on the outside of the circle, where no edge ends.
function node(each, { x, y, above }) {
  const kind = each.circuit !== "closed" ? "open" : each.kind === "agent" && !each.instances ? "gone" : "";
  const below = [each.pending ? `${each.pending} pending` : "", each.dead_letters ? `${each.dead_letters} dead` : "",
    each.circuit !== "closed" ? `circuit ${each.circuit}` : ""].filter(Boolean).join(", ");
  return s("g", { class: kind },
    s("title", {}, `${each.name}: ${each.instances} instances`),
    s("circle", { cx: x, cy: y, r: NODE }),
    s("text", { x, y: y + 5 }, each.kind === "agent" ? String(each.instances) : "↗"),
    s("text", { x, y: y + (above ? -NODE - 22 : NODE + 16) }, each.name),
    s("text", { x, y: y + (above ? -NODE - 8 : NODE + 30), class: "small" }, below));
}

function graph(found) {
  const at = places(found.nodes);
  const size = sizeOf(found.nodes);
  const pairs = new Set(found.edges.filter((each) => each.from !== each.to).map((each) => `${each.from}\n${each.to}`));
  return s("svg", { class: "graph", viewBox: `0 0 ${size} ${size}`, role: "img", "aria-label":
    `${found.nodes.length} agents and ${found.edges.length} connections; the table below says the same` },
    s("defs", {}, s("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 5, refY: 4, markerWidth: 9, markerHeight: 9,
      markerUnits: "userSpaceOnUse", orient: "auto" }, s("path", { d: "M0 0 8 4 0 8z" }))),
    found.edges.map((each) => edge(each, at, pairs)),
    found.nodes.map((each) => node(each, at.get(each.name))));
}

const NODES = 40; // drawn at most
const EDGES = 150;
const ROWS = 100;

export async function show({ place, failed, named }) {
  await poll("topology", 2000, (found) => {
    named(found);
    if (!found.nodes.length) {
      place.replaceChildren(empty("There are no agents yet.", "Apply a manifest: `mas apply mas.yaml`. Then run them: `mas run`."));
    } else {
      const connections = found.edges; // the busiest first
      const all = connections.length + found.more_edges;
      place.replaceChildren(
        h("div", { class: "card" }, found.nodes.length <= NODES && connections.length <= EDGES
          ? graph(found)
          : [h("p", { class: "quiet" }, `The busiest of ${number(found.nodes.length)} agents and ${number(all)} connections.`),
             graph(busiest(found, connections))]),
        h("section", { class: "card" }, connections.length
          ? table("Connections, the busiest first; counts of the last minute", [
              ["from", (row) => row.from],
              ["to", (row) => row.to],
              ["per second", (row) => row.rate.toFixed(2), true],
              ["accepted", (row) => number(row.count), true],
              ["refused", (row) => h("span", { class: row.refused ? "bad" : null }, number(row.refused)), true],
              ["circuit", (row) => row.circuit],
            ], connections.slice(0, ROWS))
          : h("p", { class: "quiet" }, "No agent has sent anything yet.")));
    }
    document.querySelector("main").dataset.ready = "yes";
  }, failed);
}

function busiest(found, connections) {
  if (found.nodes.length <= NODES) return { nodes: found.nodes, edges: connections.slice(0, EDGES) };
  const chosen = new Set();
  for (const each of connections) {
    if (chosen.size < NODES - 1) chosen.add(each.from).add(each.to);
  }
  const among = connections.filter((each) => chosen.has(each.from) && chosen.has(each.to));
  return { nodes: found.nodes.filter((each) => chosen.has(each.name)), edges: among.slice(0, EDGES) };
}
