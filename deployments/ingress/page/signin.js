// Asks for a key when the service wants one, and shows the name of the key. The key itself goes to
// the service, and nowhere else.

import { isStoring } from "./add.js";
import { reloadFailedImages } from "./cards.js";
import { deletion } from "./deletion.js";
import { announce, byId, say } from "./elements.js";
import { session } from "./session.js";

function show() {
  const dialog = byId("signin");
  if (dialog.open) return;
  byId("signin-why").textContent = reason();
  say(byId("signin-problem"), null);
  dialog.showModal();
  byId("signin-key").focus();
}

function reason() {
  if (!session.scopes) return "This service wants a key.";
  const then = isStoring()
    ? "The photos that are not stored yet wait: storing goes on when you have signed in."
    : "You go on where you were when you have signed in.";
  const why = "it was revoked, or somebody signed out";
  return `The key “${session.name}” counts no more: ${why}. ${then}`;
}

function hide() {
  const dialog = byId("signin");
  if (!dialog.open) return;
  byId("signin-key").value = "";
  dialog.close();
  // What had the focus before has it again; at first, nothing had it.
  const { activeElement } = document;
  if (activeElement === document.body || dialog.contains(activeElement)) {
    byId("main").focus({ preventScroll: true });
  }
  announce(`Signed in with the key ${session.name}.`);
  reloadFailedImages();
}

async function signIn() {
  const field = byId("signin-key");
  const button = byId("signin-send");
  button.disabled = true;
  try {
    await session.signIn(field.value.trim());
  } catch (problem) {
    say(byId("signin-problem"), problem.message);
    field.setAttribute("aria-invalid", "true");
    field.select();
    field.focus();
  } finally {
    button.disabled = false;
  }
}

async function signOut() {
  await deletion.settle();
  try {
    await session.signOut();
  } catch (problem) {
    return say(byId("refusal"), problem.message);
  }
  location.replace("./"); // nothing of what was seen stays
}

function showName() {
  byId("who").hidden = !session.keys;
  byId("who-name").textContent = session.name ?? "";
}

/** Wire the form and the button. */
export function startSignin() {
  session.addEventListener("locked", show);
  session.addEventListener("change", showName);
  session.addEventListener("open", hide);
  byId("signin-form").addEventListener("submit", (event) => {
    event.preventDefault();
    signIn();
  });
  byId("signin-key").addEventListener("input", ({ target }) => {
    target.removeAttribute("aria-invalid");
    say(byId("signin-problem"), null);
  });
  byId("signin").addEventListener("cancel", (event) => event.preventDefault());
  byId("signin").addEventListener("close", () => {
    if (session.locked) show(); // a browser may close it nevertheless
  });
  byId("sign-out").addEventListener("click", signOut);
}
