// Two things need a script: passkeys, and pages that renew themselves.  Everything else works without it.
"use strict";

// --- passkeys: a form with data-passkey asks for a credential before it is sent ---------------------------

const REASONS = {
  NotAllowedError: "The passkey was not used: it was canceled, or it took too long.",
  InvalidStateError: "This device has a passkey for this console already.",
  SecurityError: "Passkeys work at the console's own address only, with a trusted certificate.",
};

async function askPasskey(form) {
  const options = JSON.parse(form.dataset.options);
  if (form.dataset.passkey === "create") {
    return navigator.credentials.create({ publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(options) });
  }
  return navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options) });
}

async function sendWithPasskey(event) {
  const form = event.target;
  if (!form.dataset.passkey) return;
  event.preventDefault();
  const button = form.querySelector("button");
  const problem = form.querySelector(".problem");
  problem.textContent = "";
  button.disabled = true;
  try {
    if (!window.PublicKeyCredential || !PublicKeyCredential.parseRequestOptionsFromJSON) {
      throw new Error("This browser is too old for passkeys.");
    }
    const credential = await askPasskey(form);
    form.elements.credential.value = JSON.stringify(credential.toJSON());
    form.submit();
  } catch (error) {
    problem.textContent = REASONS[error.name] || error.message;
    button.disabled = false;
    button.focus();
  }
}

document.addEventListener("submit", sendWithPasskey);

// A page that the browser kept shows a button that was pressed: let it be pressed again.
window.addEventListener("pageshow", () => {
  for (const button of document.querySelectorAll("form[data-passkey] button")) button.disabled = false;
});

// The code of a one-time link is in its fragment, which no browser sends: a form takes it from there.
const taking = document.querySelector("form[data-fragment]");
if (taking && location.hash.length > 1) {
  taking.elements[taking.dataset.fragment].value = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname);
  taking.submit();
}

// --- live pages: an event says that something changed, and the live part is loaded again --------------------

const main = document.querySelector("main[data-events]");
const PAUSE_MS = 1000;
let waiting = false;
let again = false;

function openDetails(root) {
  return new Set([...root.querySelectorAll("details[open]")].map((each) => each.textContent.trim().slice(0, 80)));
}

function replace(live, fresh) {
  if (live.innerHTML === fresh.innerHTML) return false;
  const focused = live.contains(document.activeElement) ? document.activeElement.id : null;
  const open = openDetails(live);
  live.replaceChildren(...fresh.childNodes);
  for (const each of live.querySelectorAll("details")) {
    if (open.has(each.textContent.trim().slice(0, 80))) each.open = true;
  }
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  return true;
}

async function renew() {
  const answer = await fetch(main.dataset.source || location.href, { headers: { "X-Live": "1" } });
  if (answer.redirected) location.assign(main.dataset.source || location.href);
  if (answer.redirected || !answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const before = document.querySelector("[data-live] [data-summary]")?.textContent;
  for (const live of document.querySelectorAll("[data-live]")) {
    const other = fresh.getElementById(live.id);
    if (other) replace(live, other);
  }
  const after = document.querySelector("[data-live] [data-summary]")?.textContent;
  if (after && after !== before) document.getElementById("announcer").textContent = after;
}

async function changed() {
  if (waiting) {
    again = true;
    return;
  }
  waiting = true;
  await renew().catch(() => {});
  await new Promise((done) => setTimeout(done, PAUSE_MS));
  waiting = false;
  if (again) {
    again = false;
    changed();
  }
}

if (main) {
  const events = new EventSource(main.dataset.events);
  events.addEventListener("changed", changed);
  // Times are relative: they are renewed even if nothing happens.
  setInterval(changed, 30000);
  window.addEventListener("pagehide", () => events.close());
}
