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
for (const part of document.querySelectorAll("[data-live]")) {
  const stream = new EventSource(part.dataset.live);
  stream.addEventListener("page", (event) => {
    if (part.contains(document.activeElement) || String(getSelection()).length) return;
    part.innerHTML = event.data;
    part.dispatchEvent(new CustomEvent("renewed", { bubbles: true }));
  });
  addEventListener("pagehide", () => stream.close());
}
