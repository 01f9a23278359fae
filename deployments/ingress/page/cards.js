// A photo in a grid: its thumbnail with boxes, its name, and what was noticed or how similar it is.

import { thumbnail } from "./api.js";
import { drawBoxes, matchBoxes, overlay } from "./boxes.js";
import { byId, count, isPlainClick, make } from "./elements.js";
import { isFound } from "./found.js";
import { address, go, route } from "./route.js";
import { session } from "./session.js";

/** Return the name of a photo for display. */
export const nameOf = ({ filename, id }) => filename || `photo ${id.slice(0, 12)}`;

/** Return the similarity of a cosine distance, 1 for the same direction. */
export const similarity = (distance) => (1 - distance).toFixed(3);

/**
 * Make a card, which is a list item. If photos may not be seen, it has no picture and no link.
 * @param {{id: string, filename: ?string, width: number, height: number}} photo a record or a match
 * @param {{words?: string[], copies?: object[], onDelete?: function()}} more what was noticed about
 *     a match that was verified; photos that are copies of it; and what the delete button does, if
 *     there should be one
 */
export function card(photo, { words = [], copies = [], onDelete } = {}) {
  const { id, width, height } = photo;
  const name = nameOf(photo);
  const similar =
    photo.distance !== undefined && !isFound(photo) ? similarity(photo.distance) : null;
  const isSeen = session.may("read");
  const details = similar ? [`similarity ${similar}`] : words;
  const link = isSeen ? pictureOf(photo, details, onDelete) : null;
  const title = make("bdi", { class: "name", title: name }, name);
  const caption = make("div", { class: "caption" }, title);
  if (similar && isSeen) {
    const bar = make("span", { class: "bar" }, make("span"));
    bar.firstChild.style.width = `${100 * Math.max(0, Math.min(1, similar))}%`;
    caption.append(make("span", { class: "similarity", "aria-hidden": "true" }, bar, similar));
  } else if (similar) {
    caption.append(make("span", { class: "similarity" }, ...details));
  } else if (words.length > 0) {
    const mark = make("span", { class: "tick" });
    const attributes = { class: "noticed", "aria-hidden": isSeen ? "true" : null };
    caption.append(make("span", attributes, mark, words.join(", ")));
  } else {
    caption.append(make("span", { class: "quiet" }, `${width} × ${height}`));
  }
  if (onDelete) {
    const attributes = { type: "button", class: "delete", title: "Delete", click: onDelete };
    caption.append(make("button", { ...attributes, "aria-label": `Delete ${name}` }, "×"));
  }
  const more = copies.length > 0 ? copiesOf(name, copies) : null;
  return make("li", { class: "card", "data-id": id }, link, caption, more);
}

/** Make the link with the thumbnail of a photo, which opens it. */
function pictureOf(photo, details, onDelete) {
  const image = make("img", {
    src: thumbnail(photo.id),
    alt: "",
    loading: "lazy",
    decoding: "async",
    draggable: "false",
  });
  const boxes = overlay(photo.width, photo.height);
  if (photo.distance !== undefined) drawBoxes(boxes, matchBoxes(photo));
  return make(
    "a",
    {
      ...linkTo(photo),
      class: "open",
      "aria-label": [nameOf(photo), ...details].join(", "),
      keydown: (event) => {
        if (event.key === "Delete" && onDelete) onDelete();
      },
    },
    make("span", { class: "frame" }, image, boxes),
  );
}

/** Return the attributes of a link that opens a photo. */
function linkTo({ id }) {
  const click = (event) => {
    if (!isPlainClick(event)) return;
    event.preventDefault();
    go({ ...route, photo: id });
  };
  return { href: address({ ...route, photo: id }), click };
}

/** List the copies of a photo, as small links. */
function copiesOf(name, copies) {
  const items = copies.map((copy) => {
    const title = make("bdi", {}, nameOf(copy));
    return make("li", {}, session.may("read") ? make("a", linkTo(copy), title) : title);
  });
  const title = make("span", { class: "quiet" }, count(copies.length, "copy", "copies"));
  const list = make("ul", { "aria-label": `Copies of ${name}` }, ...items);
  return make("div", { class: "copies" }, title, list);
}

/** Show these cards in a grid. If the focused card goes, the next one gets the focus. */
export function showCards(grid, cards) {
  const element = document.activeElement;
  const focused = grid.contains(element);
  const place = [...grid.children].findIndex((item) => item.contains(element));
  grid.replaceChildren(...cards);
  if (!focused) return;
  const next = cards[Math.min(place, cards.length - 1)]?.querySelector("a") ?? byId("main");
  (grid.contains(element) ? element : next).focus({ preventScroll: true });
}

/** Load the images again that could not be loaded. */
export function reloadFailedImages() {
  for (const image of document.querySelectorAll("img[data-failed]")) {
    delete image.dataset.failed;
    image.src = image.getAttribute("src");
  }
}

// Errors of images don't bubble, but they can be captured.
document.addEventListener(
  "error",
  ({ target }) => {
    if (target instanceof HTMLImageElement) target.dataset.failed = "";
  },
  true,
);

