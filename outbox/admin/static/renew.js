// Renews what a page shows, in place and every five seconds: the parts marked data-renew, which have an id each.
// Without this script a reload does the same. Only what differs is touched, so that focus, selection, scrolling and
// what the user has typed stay as they are.
"use strict";
const EVERY_MS = 5000;
const PATIENCE_MS = 10000; // a server that hangs does not answer either
const parts = () => document.querySelectorAll("[data-renew]");

// What is marked or has the focus is in use: it is not taken away.
function held(node) {
  const selection = getSelection();
  return (!selection.isCollapsed && selection.containsNode(node, true)) || node.contains(document.activeElement);
}

// Rows and forms have a key: one of them never turns into another under the pointer.
const key = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.dataset.key : undefined);

function renewText(old, newer) {
  if (old.data !== newer.data && !held(old)) old.data = newer.data;
}

function renewElement(old, newer) {
  for (const { name } of [...old.attributes]) if (!newer.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of newer.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const wanted = new Set([...newer.childNodes].map(key));
  const known = new Map();
  for (const child of [...old.childNodes]) {
    if (key(child) === undefined) continue;
    if (wanted.has(key(child))) known.set(key(child), child);
    else if (!held(child)) child.remove();
  }
  let at = old.firstChild;
  for (const child of [...newer.childNodes]) {
    while (at && key(at) !== undefined && !wanted.has(key(at))) at = at.nextSibling; // gone, but held
    const alike = at && key(at) === undefined && key(child) === undefined && at.nodeName === child.nodeName;
    const same = known.get(key(child)) ?? (alike ? at : null);
    if (same && same === at) at = at.nextSibling;
    else old.insertBefore(same ?? child, at);
    if (!same) continue;
    if (same.nodeType === Node.TEXT_NODE) renewText(same, child);
    else if (same.nodeType === Node.ELEMENT_NODE) renewElement(same, child);
  }
  while (at) {
    const next = at.nextSibling;
    if (!held(at)) at.remove();
    at = next;
  }
}

function show(page) {
  const focused = document.activeElement;
  for (const part of parts()) {
    const newer = page.getElementById(part.id);
    if (newer) renewElement(part, newer);
  }
  // A row that has moved has lost the focus on its way.
  if (focused.isConnected && focused !== document.activeElement) focused.focus({ preventScroll: true });
  document.title = page.title;
}

let asking = false;
async function renew() {
  if (document.hidden || asking) return;
  asking = true;
  const note = document.getElementById("stale");
  let why = "No answer any more";
  try {
    const request = { headers: { accept: "text/html" }, redirect: "manual", signal: AbortSignal.timeout(PATIENCE_MS) };
    const answer = await fetch(location.href, request);
    if (answer.type === "opaqueredirect") return location.reload(); // the session is over: this leads to the login
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (!answer.ok) {
      why = page.getElementById("why")?.textContent ?? why; // as the page of the error says it
      throw new Error(why);
    }
    show(page);
    note.hidden = true;
  } catch {
    note.firstElementChild.textContent = why;
    note.hidden = false; // the figures are old, and look it
  } finally {
    asking = false;
  }
  document.body.classList.toggle("old", !note.hidden);
}

if (parts().length) {
  setInterval(renew, EVERY_MS);
  document.addEventListener("visibilitychange", renew);
}
// A reload must not say again what was done.
if (new URLSearchParams(location.search).has("done")) {
  const address = new URL(location.href);
  address.searchParams.delete("done");
  history.replaceState(null, "", address);
}
