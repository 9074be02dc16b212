// The browsing page: keys, and words that are selected are what is to be quoted. Every form also works without it.
"use strict";

const text = document.getElementById("page");
const quote = document.getElementById("quote");
const answer = document.getElementById("answer");
let sent = false;

document.addEventListener("selectionchange", () => {
  const selection = document.getSelection();
  if (!quote || selection.isCollapsed || !text.contains(selection.anchorNode) || !text.contains(selection.focusNode)) return;
  const words = selection.toString().trim().replace(/\s+/g, " ");
  if (words) quote.value = words;
});

// A click on the link under a selection that has just been made is no click on the link.
text?.addEventListener("click", (event) => {
  if (event.target.closest("label") && !document.getSelection().isCollapsed) event.preventDefault();
});

// A form is sent once: a second click would be a second action.
document.addEventListener("submit", (event) => {
  if (sent) event.preventDefault();
  sent = true;
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey && event.key === "Enter" && [answer, quote].includes(event.target)) event.target.form.requestSubmit();
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat) return;
  if (event.target.closest("textarea, select, input")) return; // page.js leaves them on Escape
  if (event.key === "?") flip("keys");
  else if (event.key.toLowerCase() === "g") flip("guidelines");
  else if (!act(event.key.toLowerCase())) return;
  event.preventDefault();
});

document.addEventListener("DOMContentLoaded", () => rememberGuidelines()); // of page.js, which runs behind this script
const first = answer ?? (document.getElementById("problem") ? null : text ?? document.getElementById("search"));
// Not "autofocus", of which Chromium complains where something has been focused before the page was whole.
if (document.activeElement === document.body) first?.focus({ preventScroll: true });

/** Do what a key stands for; tell whether it stands for anything. */
function act(key) {
  const control = [...document.querySelectorAll("[data-key]")].find((one) => one.dataset.key === key);
  if (!control || control.disabled) return false;
  if (control === quote && quote.value.trim()) quote.form.requestSubmit();
  else if (control.matches("button")) control.click();
  else control.select();
  return true;
}
