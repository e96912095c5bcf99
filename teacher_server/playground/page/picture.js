// The picture, as the teacher sees it or the original, with the places of an analysis marked.

import { element, find } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const HEADINGS = { right: [1, 0], down: [0, 1], left: [-1, 0], up: [0, -1] };
let shown = { drawn: null, prepared: null, analysis: null };

export function init() {
  for (const choice of document.querySelectorAll("input[name=view]")) choice.onchange = draw;
  find("mark").onchange = draw;
  draw();
}

/** Shows `drawn` (base64) with the response of /playground/prepared and the text of an analysis, once they are known. */
export function show(change) {
  shown = { ...shown, ...change };
  draw();
}

function draw() {
  const { drawn, prepared } = shown;
  const asSeen = document.querySelector("input[name=view]:checked").value === "prepared";
  const picture = find("picture");
  const image = (asSeen ? prepared?.image : drawn) ?? drawn;
  picture.hidden = !image;
  if (image) {
    picture.src = `data:${image.startsWith("/9j/") ? "image/jpeg" : "image/png"};base64,${image}`;
    picture.alt = asSeen ? "The picture as the teacher sees it" : "The original picture";
  }
  find("caption").textContent = prepared && asSeen ? describe(prepared) : "";
  const said = prepared?.grid ? placesOf(shown.analysis) : [];
  const marks = said.filter(isIn(prepared?.grid));
  const outside = said.length - marks.length;
  find("mark-row").classList.toggle("away", said.length === 0);
  find("key").replaceChildren(
    ...[...new Set(marks.map((mark) => mark.what))].map((what) => element("span", { className: what }, what)),
    ...(outside ? [element("em", {}, `${outside} outside the grid`)] : []),
  );
  const visible = marks.length > 0 && find("mark").checked;
  find("marks").replaceChildren(...(visible ? place(marks, prepared, asSeen) : []));
}

function describe({ width, height, tokens, grid }) {
  const parts = [`${width} × ${height} px`];
  if (tokens !== null) parts.push(`${tokens} visual tokens`);
  if (grid) {
    const columns = grid.columns + (grid.margin ? 1 : 0);
    parts.push(`${grid.columns} × ${grid.rows} cells of ${Math.round(width / columns)} px`);
    if (grid.margin) parts.push("numbered margin");
  }
  return parts.join(" · ");
}

/** Returns the places of agent, target and hazards in an analysis in JSON. */
function placesOf(text) {
  let said;
  try {
    said = JSON.parse(text);
  } catch {
    return [];
  }
  const { agent, target, hazards } = said ?? {};
  const places = (Array.isArray(hazards) ? hazards : []).map((at) => ({ what: "hazard", row: at?.[0], column: at?.[1] }));
  if (target) places.push({ what: "target", row: target.row, column: target.column });
  if (agent) places.push({ what: "agent", row: agent.row, column: agent.column, heading: agent.heading });
  return places.filter(({ row, column }) => Number.isInteger(row) && Number.isInteger(column));
}

const isIn = (grid) => ({ row, column }) => row >= 0 && row < grid.rows && column >= 0 && column < grid.columns;

function place(marks, { width, height, grid }, asSeen) {
  const margin = asSeen && grid.margin ? 1 : 0;
  const columns = grid.columns + margin;
  const rows = grid.rows + margin;
  const [w, h] = asSeen ? [width, height] : [columns, rows];
  const svg = find("marks");
  svg.style.width = `${100 * Math.min(1, w / h)}%`;
  svg.style.height = `${100 * Math.min(1, h / w)}%`;
  svg.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
  return marks.flatMap(({ what, row, column, heading }) => {
    const [x, y] = [column + margin, row + margin];
    const box = drawn("rect", what, { x: x + 0.06, y: y + 0.06, width: 0.88, height: 0.88, rx: 0.08 });
    if (!(heading in HEADINGS)) return [box];
    const [dx, dy] = HEADINGS[heading];
    const ends = { x1: x + 0.5 + 0.44 * dx, y1: y + 0.5 + 0.44 * dy, x2: x + 0.5 + 0.8 * dx, y2: y + 0.5 + 0.8 * dy };
    return [box, drawn("line", what, ends)];
  });
}

function drawn(tag, what, attributes) {
  const made = document.createElementNS(SVG, tag);
  made.setAttribute("class", `mark-${what}`);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
