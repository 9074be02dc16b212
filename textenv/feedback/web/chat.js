// The conversation page: shows an answer while it is written. Every form also works without this script.
"use strict";

const problem = document.getElementById("problem");
const list = document.getElementById("messages");
const text = document.getElementById("text");
let busy = false;

for (const form of document.querySelectorAll("form.answers-by")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!busy) answer(form);
  });
}

text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  text.form.requestSubmit();
});

document.getElementById("last")?.scrollIntoView({ block: "end" });
// Not "autofocus", of which Chromium complains where something has been focused before the page was whole.
if (document.activeElement === document.body) text.focus({ preventScroll: true });

/** Send a form that is answered by a text, and show that as it comes. */
async function answer(form) {
  const body = new URLSearchParams(new FormData(form));
  const buttons = [...document.querySelectorAll("button:enabled")];
  // "Say something", or the answer that another one takes the place of.
  const replaced = form.id === "say" ? list.querySelector(":scope > .remark") : list.lastElementChild;
  busy = true;
  problem.hidden = true;
  buttons.forEach((button) => (button.disabled = true));
  if (replaced) replaced.hidden = true;
  const shown = form.id === "say" ? [add("user", text.value)] : [];
  const written = add("assistant", "");
  shown.push(written);
  try {
    const response = await fetch(form.action, { method: "POST", headers: { Accept: "text/plain" }, body });
    if (!response.ok) throw new Error(await response.text());
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      written.querySelector(".text").textContent += part.value;
      written.scrollIntoView({ block: "end" });
    }
    location.replace("/");
  } catch (error) {
    shown.forEach((one) => one.remove());
    if (replaced) replaced.hidden = false;
    problem.textContent = error.message;
    problem.hidden = false;
    buttons.forEach((button) => (button.disabled = false));
    busy = false;
    text.focus();
  }
}

/** Add a message to what is shown. */
function add(role, content) {
  const section = document.createElement("section");
  section.className = "message " + role;
  const heading = document.createElement("h2");
  heading.textContent = role;
  const body = document.createElement("div");
  body.className = "text";
  body.dir = "auto";
  body.textContent = content;
  section.append(heading, body);
  list.append(section);
  section.scrollIntoView({ block: "end" });
  return section;
}
