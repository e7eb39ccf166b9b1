// Renews what a page shows, in place: parts marked data-renew="seconds". Without this script a reload does the same.
"use strict";
for (const part of document.querySelectorAll("[data-renew]")) {
  const place = [...document.querySelectorAll("[data-renew]")].indexOf(part);
  let shown = part;
  const renew = async () => {
    // Somebody reads with the keyboard, or has the page in the background: leave it alone.
    if (document.hidden || shown.contains(document.activeElement)) return;
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" }, redirect: "error" });
      if (!answer.ok) throw new Error(answer.statusText);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const newer = page.querySelectorAll("[data-renew]")[place];
      if (newer) {
        shown.replaceWith(newer);
        shown = newer;
        document.title = page.title;
        document.body.classList.remove("stale");
      }
    } catch {
      document.body.classList.add("stale"); // the figures are old, and look it
    }
  };
  setInterval(renew, 1000 * Number(part.dataset.renew));
}
// A reload must not say again what was done.
if (new URLSearchParams(location.search).has("done")) {
  const address = new URL(location.href);
  address.searchParams.delete("done");
  history.replaceState(null, "", address);
}
