// Asks both sides of the playground at once, and shows their answers while they are written, as plain text.
"use strict";

const form = document.getElementById("ask");
const stopButton = document.getElementById("stop");
let asking = null;

// As the server shows texts of others: what turns a line around or cannot be seen is shown by its number.
const UNSEEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;

function harmless(text) {
  return text.replaceAll("\r\n", "\n").replace(UNSEEN, (letter) => "\\u" + letter.codePointAt(0).toString(16).padStart(4, "0"));
}

const headers = { "content-type": "application/json", accept: "application/json", "x-form-token": form.dataset.token };
const judged = new Set(JSON.parse(form.dataset.judged));

// What is said of an answer counts as any feedback; the last word of a key is its own.
async function judge(thumbs, value) {
  const body = JSON.stringify({ target_id: thumbs.dataset.turn, value });
  const response = await fetch("/ui/playground/thumb", { method: "POST", headers, body });
  const told = await response.json().catch(() => null);
  const said = thumbs.querySelector(".said");
  said.textContent = response.ok ? (value ? "Kept: good." : "Kept: bad.") : (told && told.detail) || "The server answered " + response.status + ".";
  if (response.ok) for (const button of thumbs.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.dataset.value === String(value)));
}

for (const thumbs of form.querySelectorAll(".thumbs")) {
  for (const button of thumbs.querySelectorAll("button")) {
    button.addEventListener("click", () => judge(thumbs, button.dataset.value === "true"));
  }
}

async function askSide(side, body, signal) {
  const answer = side.querySelector(".answer");
  const note = side.querySelector(".note");
  const started = performance.now();
  answer.textContent = "";
  note.textContent = "…";
  const thumbs = side.querySelector(".thumbs");
  thumbs.hidden = true;
  const request = { method: "POST", headers, body: JSON.stringify(body), signal };
  const response = await fetch("/ui/playground/chat", request);
  if (!response.ok) {
    const told = await response.json().catch(() => null);
    note.textContent = told && told.detail ? told.detail : "The server answered " + response.status + ".";
    return;
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("");
      if (!data || data === "[DONE]") continue;
      const chunk = JSON.parse(data);
      if (chunk.id) thumbs.dataset.turn = chunk.id;
      if (chunk.error) note.textContent = chunk.error.message;
      for (const choice of chunk.choices || []) {
        answer.append(harmless((choice.delta && choice.delta.content) || ""));
      }
    }
  }
  thumbs.hidden = !judged.has(body.model) || note.textContent !== "…";
  thumbs.querySelector(".said").textContent = "";
  for (const button of thumbs.querySelectorAll("button")) button.removeAttribute("aria-pressed");
  const seconds = (performance.now() - started) / 1000;
  if (note.textContent === "…") note.textContent = `${seconds.toFixed(1)} s, by ${response.headers.get("x-loreloop-revision")}`;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (asking) asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  stopButton.disabled = false;
  const number = (name) => Number(document.getElementById(name).value);
  const sides = [...form.querySelectorAll(".side")].map((side) => {
    const body = {
      model: side.querySelector(".model").value,
      messages: [{ role: "user", content: document.getElementById("prompt").value }],
      temperature: number("temperature"),
      max_tokens: number("max_tokens"),
      seed: number("seed"),
      stream: true,
    };
    return askSide(side, body, signal).catch((error) => {
      side.querySelector(".note").textContent = signal.aborted ? "Stopped." : String(error);
    });
  });
  await Promise.all(sides);
  stopButton.disabled = true;
});
document.getElementById("again").addEventListener("click", () => {
  const seed = document.getElementById("seed");
  seed.value = Number(seed.value) + 1;
  form.requestSubmit();
});
stopButton.addEventListener("click", () => asking && asking.abort());
