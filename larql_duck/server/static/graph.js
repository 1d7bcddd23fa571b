// A graph of neighbours by Cytoscape; whoever cannot use it has the same triples as a list beside it.

import { theme } from "./colours.js";
import { address } from "./links.js";

/** Draw triples {subject, relation, object, confidence} around a name; a click on a node opens it. */
export async function drawGraph(element, model, centre, triples, open) {
  const { default: cytoscape } = await import("/vendor/cytoscape.esm.min.mjs");
  const colour = theme();
  const names = [...new Set([centre, ...triples.flatMap((t) => [t.subject, t.object])])];
  // Names are data, not ids with a grammar: nodes are numbered.
  const id = new Map(names.map((name, i) => [name, `n${i}`]));
  const short = (name) => (name.length > 24 ? `${name.slice(0, 23)}…` : name);
  const graph = cytoscape({
    container: element,
    elements: [
      ...names.map((name) => ({ data: { id: id.get(name), label: short(name), name }, classes: name === centre ? "centre" : "" })),
      ...triples.map((t, i) => ({ data: { id: `e${i}`, source: id.get(t.subject), target: id.get(t.object), label: t.relation, width: 1 + 3 * (t.confidence ?? 0) } })),
    ],
    style: [
      { selector: "node", style: { "background-color": colour("chip"), "border-color": colour("accent"), "border-width": 1.5, label: "data(label)", color: colour("ink"), "font-size": 12, "text-valign": "bottom", "text-margin-y": 4, width: 18, height: 18 } },
      { selector: "node.centre", style: { "background-color": colour("accent"), width: 26, height: 26, "font-weight": "bold" } },
      { selector: "edge", style: { width: "data(width)", "line-color": colour("quiet"), "target-arrow-color": colour("quiet"), "target-arrow-shape": "triangle", "curve-style": "bezier", label: "data(label)", color: colour("quiet"), "font-size": 10, "text-rotation": "autorotate", "text-background-color": colour("paper"), "text-background-opacity": 1 } },
    ],
    layout: { name: "cose", animate: false, randomize: true, nodeDimensionsIncludeLabels: true, nodeRepulsion: () => 90000, idealEdgeLength: () => 90, padding: 24 },
    userZoomingEnabled: false,
    minZoom: 0.2,
    maxZoom: 2,
  });
  // Names stay readable where the whole graph had to be made small.
  const zoom = Math.min(1, graph.zoom());
  graph.nodes().style("font-size", Math.min(24, 12 / zoom));
  graph.edges().style("font-size", Math.min(20, 10 / zoom));
  // A phone that is turned, a window that is made wider.
  new ResizeObserver(() => {
    graph.resize();
    graph.fit(undefined, 24);
  }).observe(element);
  graph.on("tap", "node", (event) => open(address.entity(model, event.target.data("name"))));
  graph.on("mouseover", "node", () => element.classList.add("pointing"));
  graph.on("mouseout", "node", () => element.classList.remove("pointing"));
  element.dataset.drawn = "true";
  return graph;
}
