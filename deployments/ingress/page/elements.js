// Functions that make and fill elements. Texts are never parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Return the element of index.html with this id. */
export const byId = (id) => document.getElementById(id);

/**
 * Make an element.
 * Attributes that are functions become listeners; true sets an attribute, false leaves it out.
 */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an SVG element, like `make`. */
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

/** Show an element with a text, or hide it if there is none. */
export function say(element, text) {
  element.textContent = text ?? "";
  element.hidden = !text;
}

/** Announce a sentence to screen readers; it replaces the one before. */
export function announce(sentence) {
  setTimeout(() => {
    // Screen readers ignore what is outside an open dialog.
    const region = byId("viewer").open ? byId("viewer-live") : byId("live");
    region.textContent = "";
    setTimeout(() => (region.textContent = sentence), 50);
  }, 50);
}

/** Return whether a click is a plain one, which doesn't open a new tab. */
export function isPlainClick(event) {
  return event.button === 0 && !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
}

/** Return a number with its noun: "1 photo", "1,234 photos". */
export function count(number, noun, nouns = `${noun}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? noun : nouns}`;
}
