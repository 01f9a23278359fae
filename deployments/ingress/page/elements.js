// Making elements. What is given as text stays text: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

/** The element with this id, which index.html has. */
export const byId = (id) => document.getElementById(id);

/**
 * Make an element.
 * Of its attributes, functions become listeners, true and false the attribute or none.
 */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function makeSvg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Show an element with a text in it, or hide it if there is none. */
export function say(element, text) {
  element.textContent = text ?? "";
  element.hidden = !text;
}

/** Tell a screen reader; one message takes the place of another. */
export function announce(sentence) {
  setTimeout(() => {
    // What is outside of an open dialog is not read.
    const region = byId("viewer").open ? byId("viewer-live") : byId("live");
    region.textContent = "";
    setTimeout(() => (region.textContent = sentence), 50);
  }, 50);
}

/** A plain click, not one that opens a new tab. */
export function isPlainClick(event) {
  return event.button === 0 && !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
}

/** How many of what: "1 photo", "1,234 photos". */
export function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}
