// Creates and fills elements. Text is never parsed as HTML.

export const find = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Fills a <dl> with [term, value] pairs; `grouped` puts each pair into a <div>. */
export function fillList(list, pairs, grouped = false) {
  const items = pairs.map(([term, value]) => [element("dt", {}, term), element("dd", {}, String(value))]);
  list.replaceChildren(...(grouped ? items.map((pair) => element("div", {}, ...pair)) : items.flat()));
}

/** Flattens {a: {b: 1}} to [["a.b", 1]]. */
export function flat(object, before = "") {
  return Object.entries(object).flatMap(([name, value]) =>
    value !== null && typeof value === "object" && !Array.isArray(value)
      ? flat(value, `${before}${name}.`)
      : [[before + name, Array.isArray(value) ? value.join(", ") : value]],
  );
}
