// What a page does beyond showing: it changes its theme, asks before what cannot be undone, and shows changes as they
// come. Every page can be read without it.
"use strict";

function changeTheme() {
  const root = document.documentElement;
  const systemIsDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const isDark = (root.dataset.theme || (systemIsDark ? "dark" : "light")) === "dark";
  root.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
}

const button = document.getElementById("theme");
button.hidden = false;
button.addEventListener("click", changeTheme);

document.addEventListener("submit", (event) => {
  const question = event.submitter && event.submitter.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
});

// The server sends the part anew; it has escaped whatever stands in it. A stream that breaks off is asked for again by
// the browser itself.
function follow(part) {
  let stream = null;
  let held = null; // what has come and is not shown yet, since somebody reads what stands there

  function show() {
    if (held === null || part.contains(document.activeElement) || String(getSelection()).length) return;
    part.innerHTML = held;
    held = null;
    part.dispatchEvent(new CustomEvent("renewed", { bubbles: true }));
  }

  // A browser keeps six connections to a server, so a tab that nobody sees gives its own back.
  function listen() {
    if (document.hidden && stream) {
      stream.close();
      stream = null;
    } else if (!document.hidden && !stream) {
      stream = new EventSource(part.dataset.live);
      stream.addEventListener("page", (event) => {
        held = event.data;
        show();
      });
    }
  }

  for (const name of ["selectionchange", "focusout"]) document.addEventListener(name, () => setTimeout(show));
  document.addEventListener("visibilitychange", listen);
  listen();
}

for (const part of document.querySelectorAll("[data-live]")) follow(part);
