// The theme that was chosen here last, before anything is drawn; else that of the system holds.
"use strict";
const chosen = localStorage.getItem("theme");
if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
