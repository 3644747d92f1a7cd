/** Makes and finds elements. */

type Value = string | number | boolean | undefined | ((event: Event) => void);

/**
 * An element. Functions become listeners of the event they are named after, as `onclick`; true and
 * false set and leave out an attribute; all else is an attribute's text.
 */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Readonly<Record<string, Value>> = {},
  ...children: readonly (Node | string)[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") {
      element.addEventListener(name.slice(2), value);
    } else if (value === true) element.setAttribute(name, "");
    else if (value !== undefined && value !== false) {
      element.setAttribute(name, `${value}`);
    }
  }
  element.append(...children);
  return element;
}

/** The page's element with an id. */
export function byId<T extends HTMLElement>(
  id: string,
  type: new () => T,
): T {
  const element = document.getElementById(id);
  if (element instanceof type) return element;
  throw new Error(`The page has no ${type.name} #${id}`);
}

const SVG = "http://www.w3.org/2000/svg";

/** One of the symbols of index.html. */
export function icon(name: string): SVGElement {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A button that is only a symbol; its label is for hints and screen readers. */
export function iconButton(
  name: string,
  label: string,
  onclick: (event: Event) => void,
  attributes: Readonly<Record<string, Value>> = {},
): HTMLButtonElement {
  return h(
    "button",
    {
      type: "button",
      class: "icon-button",
      "aria-label": label,
      title: label,
      onclick,
      ...attributes,
    },
    icon(name),
  );
}

/** Makes a text field as high as its text, where style sheets cannot. */
export function growing(area: HTMLTextAreaElement): HTMLTextAreaElement {
  if (CSS.supports("field-sizing", "content")) return area;
  const grow = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight}px`;
  };
  area.addEventListener("input", grow);
  requestAnimationFrame(grow);
  return area;
}
