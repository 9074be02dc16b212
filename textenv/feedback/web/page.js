// The labeling page's keys, dragging and drafts. Every form also works without this script, which fills in its fields.
"use strict";

document.documentElement.classList.add("scripts");

if (document.getElementById("stored")) {
  tryStoring(() => localStorage.removeItem(sessionStorage.getItem("textenv sent")));
}

const undo = document.getElementById("undo");
const judge = document.getElementById("judge");
const live = judge ? label(judge) : null;
const demonstrate = document.getElementById("demonstrate");
const writing = demonstrate ? written(demonstrate) : null;

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const typing = event.target.closest("textarea, select, input:not([type=radio])");
  if (typing) {
    if (event.key === "Escape") typing.blur();
    return;
  }
  if (undo && event.key.toLowerCase() === "u" && !event.repeat) undo.requestSubmit();
  else if (!(live && live.key(event)) && !(writing && writing.key(event))) return;
  event.preventDefault();
});

window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

/** Read or change what this browser stores, where it may: without, there are no drafts. */
function tryStoring(act) {
  try {
    return act();
  } catch {
    return undefined;
  }
}

/** Return a function that tells for how many seconds the page has been in sight. */
function stopwatch() {
  let before = 0;
  let since = document.hidden ? null : performance.now();
  const spent = () => before + (since === null ? 0 : (performance.now() - since) / 1000);
  document.addEventListener("visibilitychange", () => {
    before = spent();
    since = document.hidden ? null : performance.now();
  });
  return spent;
}

/** Open or close a panel. */
function flip(id) {
  const panel = document.getElementById(id);
  panel.open = !panel.open;
}

/** Keep the lease of a form, and the progress and the agreement that are shown, while the page is open. */
function keepAlive(form, isSent) {
  let active = Date.now();
  for (const name of ["keydown", "pointermove", "wheel", "touchstart"]) {
    document.addEventListener(name, () => { active = Date.now(); }, { passive: true });
  }

  function tellAway(text) {
    const away = document.getElementById("away");
    away.hidden = !text;
    if (away.textContent !== text) away.textContent = text; // otherwise a screen reader would read it out every time
  }

  async function stayAlive() {
    if (document.hidden || isSent()) return;
    const fields = new URLSearchParams({ token: form.elements.token.value });
    // The lease of a page that is open but not used runs out, so that others get the task.
    if (Date.now() - active < 1000 * form.dataset.lease) fields.set("assignment", form.elements.assignment.value);
    let answer;
    try {
      answer = await fetch("/alive", { method: "POST", body: fields });
    } catch {
      tellAway("The server does not answer. What you chose is kept in this browser; submit it once this message is gone.");
      return;
    }
    if (!answer.ok) {
      tellAway(answer.status === 403
        ? "You are no longer signed in here. Reload the page to sign in again."
        : "The server has a problem. What you chose is kept in this browser; submit it once this message is gone.");
      return;
    }
    tellAway("");
    const now = await answer.json();
    document.getElementById("done-text").textContent = now.text;
    document.getElementById("done").value = now.done;
    document.getElementById("done").max = now.wanted || 1;
    document.getElementById("agreement").textContent = now.agreement;
    const passedOn = document.getElementById("passed-on");
    passedOn.hidden = !now.passed_on;
    passedOn.textContent = now.passed_on;
  }

  setInterval(stayAlive, 1000 * form.dataset.alive);
}

/** Let the panel of guidelines stay as it was left. */
function rememberGuidelines() {
  const guidelines = document.getElementById("guidelines");
  guidelines.addEventListener("toggle", () => {
    tryStoring(() => localStorage.setItem("textenv guidelines", guidelines.open ? "open" : "closed"));
  });
  const wanted = tryStoring(() => localStorage.getItem("textenv guidelines"));
  if (wanted) guidelines.open = wanted === "open";
}

/** Add keys, further turns and drafts to the form of an answer; return its handler of keys. */
function written(form) {
  const alone = form.dataset.alive !== undefined; // not beside a ranking
  const panel = form.closest("details");
  const list = form.querySelector(".boxes");
  const goOn = document.getElementById("go-on");
  const joint = form.querySelector(".joint");
  const draftName = ["assignment", "edited", "changes"].reduce(
    (name, field) => name + " " + form.elements[field].value, "textenv draft answer");
  const boxes = () => [...list.querySelectorAll("textarea")];
  const spent = stopwatch();
  let sent = false;

  function addTurns() {
    list.append(document.getElementById("turns").content.cloneNode(true));
  }

  function show() {
    for (const box of boxes()) {
      box.style.height = "auto";
      box.style.height = `${box.scrollHeight + 2}px`;
    }
    if (!joint) return;
    const { value } = boxes()[0];
    const text = document.createElement("mark");
    text.textContent = value.slice(0, 40);
    joint.replaceChildren(joint.dataset.before, text, value.length > 40 ? "…" : "");
    joint.hidden = !value;
  }

  function keep() {
    const draft = { at: Date.now(), texts: boxes().map((box) => box.value) };
    tryStoring(() => localStorage.setItem(draftName, JSON.stringify(draft)));
  }

  function recall() {
    const draft = tryStoring(() => JSON.parse(localStorage.getItem(draftName)));
    if (!draft || !draft.texts.some((text) => text.trim())) return;
    while (goOn && boxes().length < draft.texts.length) addTurns();
    boxes().forEach((box, place) => { box.value = draft.texts[place] ?? ""; });
    if (panel) panel.open = true;
  }

  function write() {
    if (panel) panel.open = true;
    show();
    boxes().at(-1).focus();
  }

  if (goOn) goOn.addEventListener("click", () => {
    addTurns();
    show();
    boxes().at(-2).focus();
  });
  form.addEventListener("input", () => { show(); keep(); });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat) form.requestSubmit();
  });
  form.addEventListener("submit", (event) => {
    if (sent || !boxes().some((box) => box.value.trim())) {
      event.preventDefault();
      if (!sent) write();
      return;
    }
    sent = true;
    form.querySelector("button.primary").disabled = true;
    if (form.elements.seconds) form.elements.seconds.value = spent().toFixed(3);
    tryStoring(() => sessionStorage.setItem("textenv sent", draftName)); // dropped once the server says it is stored
  });
  if (panel) panel.addEventListener("toggle", show);

  if (document.getElementById("stored")) history.replaceState(null, "", "/");
  recall();
  show();
  if (alone) {
    keepAlive(form, () => sent);
    rememberGuidelines();
  }
  // Not "autofocus", of which Chromium complains where something has been focused before the page was whole.
  // And not before the page has scrolled to where its address points, which takes the focus away.
  if (alone || form.elements.edited.value || form.elements.changes.value) window.addEventListener("load", write);

  function key(event) {
    switch (event.key.toLowerCase()) {
      case "w": write(); return true;
      case "c": if (alone) document.getElementById("cannot").click(); return alone;
      case "g": if (alone) flip("guidelines"); return alone;
      case "?": if (alone) flip("keys"); return alone;
    }
    return false;
  }

  return { key };
}

/** Add keys, dragging and drafts to a labeling form; return its handler of keys. */
function label(form) {
  const cards = [...form.querySelectorAll(".card")];
  const selects = cards.map((card) => card.querySelector("select"));
  const tray = document.getElementById("tray");
  const said = document.getElementById("said");
  const note = document.getElementById("note");
  const submit = document.getElementById("submit");
  const count = cards.length;
  const draftName = "textenv draft " + form.elements.assignment.value;

  // Groups of places, from best to worst; places in one group are tied. A place in no group is not ranked yet.
  let groups = [];
  let joins = false; // the next one picked is tied with the last
  let edits = false; // the next number is that of a completion to edit
  let sent = false;

  const unranked = () => cards.map((_, place) => place).filter((place) => !groups.flat().includes(place));
  const radio = (name, value) => form.querySelector(`input[name=${name}][value="${value}"]`);
  const verdict = () => form.elements.verdict.value;

  // ---- what the ranking is

  function take(place) {
    groups.forEach((group) => group.includes(place) && group.splice(group.indexOf(place), 1));
    groups = groups.filter((group) => group.length);
  }

  function rankedNow() {
    radio("verdict", "ranked").checked = true;
  }

  /** Put a place into group `index`, or into a new one before it. */
  function put(place, index, together) {
    const target = groups[index];
    if (together) {
      take(place);
      target.push(place);
      if (!groups.includes(target)) groups.splice(index, 0, target); // the group held nothing else and was removed
    } else {
      const before = groups.slice(0, index).filter((group) => group.some((other) => other !== place)).length;
      take(place);
      groups.splice(before, 0, [place]);
    }
    finish();
  }

  function finish() {
    const rest = unranked();
    if (count === 2 && groups.length === 1 && rest.length === 1) groups.push(rest); // with two items, the other one is worse
    rankedNow();
    show();
  }

  /** A completion was picked by its key, its button or its chip. */
  function pick(place) {
    if (count === 2) groups = [[place], [1 - place]];
    else if (unranked().includes(place)) {
      if (joins && groups.length) groups.at(-1).push(place);
      else groups.push([place]);
    } else return;
    joins = false;
    finish();
  }

  function drop(place) {
    joins = false;
    if (count === 2) groups = [];
    else take(place);
    rankedNow();
    show();
  }

  function tieAll() {
    joins = false;
    groups = [cards.map((_, place) => place)];
    finish();
  }

  // ---- what is seen

  function make(tag, name, text) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function chip(place, ranked) {
    const made = make("button", "chip", String(place + 1));
    made.type = "button";
    made.dataset.place = place;
    made.setAttribute("aria-label", ranked
      ? `${place + 1}, ranked. Press to take it back, left and right arrow to move it.`
      : `${place + 1}, not ranked yet. Press to rank it next.`);
    made.addEventListener("click", () => { ranked ? drop(place) : pick(place); refocus(place); });
    made.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || !ranked) return;
      event.preventDefault();
      shift(place, step);
      refocus(place);
    });
    return made;
  }

  /** Move a place one half step: out of its tie, or into a tie with its neighbor. */
  function shift(place, step) {
    const at = groups.findIndex((group) => group.includes(place));
    if (groups[at].length > 1) put(place, step < 0 ? at : at + 1, false);
    else if (groups[at + step]) put(place, at + step, true);
  }

  function refocus(place) {
    tray.querySelector(`.chip[data-place="${place}"]`).focus();
  }

  function zone(name, what, label) {
    const made = make("div", name, label);
    made.dataset.drop = what;
    return made;
  }

  function show() {
    const rest = unranked();
    const row = make("div", "row");
    row.append(make("span", "end", "best"));
    groups.forEach((group, index) => {
      row.append(zone("gap", `before ${index}`, index ? "›" : ""));
      const made = zone("group", `with ${index}`);
      group.forEach((place, nth) => {
        if (nth) made.append(make("span", "equals", "="));
        made.append(chip(place, true));
      });
      row.append(made);
    });
    if (!groups.length) row.append(zone("gap wide", "before 0", "drag here, or press its number"));
    else {
      row.append(zone("gap", `before ${groups.length}`, ""));
      if (!rest.length) row.append(make("span", "end", "worst"));
    }
    const parts = [row];
    if (rest.length) {
      const pool = zone("pool", "pool");
      pool.append(make("span", "end", groups.length ? "still to rank" : "to rank"), ...rest.map((place) => chip(place, false)));
      parts.push(pool);
    }
    tray.replaceChildren(...parts);

    const counted = verdict() === "ranked";
    tray.classList.toggle("idle", !counted);
    cards.forEach((card, place) => {
      const at = groups.findIndex((group) => group.includes(place));
      selects[place].value = at < 0 ? "" : String(at + 1);
      card.classList.toggle("best", counted && at === 0);
      card.classList.toggle("ranked", counted && at >= 0);
      card.querySelector(".standing").textContent = counted && at >= 0 ? standing(at) : "";
      const button = card.querySelector(".pick");
      button.setAttribute("aria-pressed", String(counted && (count === 2 ? at === 0 : at >= 0)));
      if (count > 2) button.firstElementChild.textContent = at < 0 ? `Rank ${place + 1} next` : `Take ${place + 1} back`;
    });
    said.textContent = sentence(rest);
    said.classList.toggle("partial", counted && groups.length > 0 && rest.length > 0);
    submit.disabled = sent || (counted && !groups.length);
    keep();
  }

  function standing(at) {
    if (groups.length === 1 && !unranked().length) return "tied";
    const tied = groups[at].length > 1 ? ", tied" : "";
    return (at === 0 ? "best" : at === groups.length - 1 && !unranked().length ? "worst" : `${at + 1}.`) + tied;
  }

  function sentence(rest) {
    if (edits) return "Press the number of the one to edit.";
    if (verdict() === "both_bad") return count === 2 ? "Both are bad." : "All are bad.";
    if (verdict() === "cant_tell") return "You can't tell.";
    if (!groups.length) return "";
    if (groups.length === 1 && !rest.length) return count === 2 ? "Both are equally good." : "All are equally good.";
    if (count === 2) return `${groups[0][0] + 1} is better than ${groups[1][0] + 1}.`;
    const listed = groups.map((group) => group.map((place) => place + 1).join(" = ")).join(" › ");
    const waiting = joins ? " The next one will be tied with the last." : "";
    if (!rest.length) return `${listed}.${waiting}`;
    const left = rest.map((place) => place + 1).join(", ");
    return `${listed}. Left below, in no order: ${left}.${waiting}`;
  }

  // ---- dragging, by mouse, pen or finger

  let held = null;

  function lift(event, place, source) {
    if (event.button !== 0 || sent) return;
    if (event.target.closest("select, summary, a")) return;
    if (event.pointerType === "mouse") event.preventDefault(); // no focus and no selected text
    held = { place, source, id: event.pointerId, x: event.clientX, y: event.clientY, ghost: null };
  }

  tray.addEventListener("pointerdown", (event) => {
    const found = event.target.closest(".chip");
    if (found) lift(event, Number(found.dataset.place), found);
  });
  cards.forEach((card, place) => {
    const handle = card.querySelector(".handle");
    handle.addEventListener("pointerdown", (event) => lift(event, place, handle));
  });

  function under(event) {
    const found = document.elementFromPoint(event.clientX, event.clientY);
    return found ? found.closest("[data-drop]") : null;
  }

  document.addEventListener("pointermove", (event) => {
    if (!held || event.pointerId !== held.id) return;
    if (!held.ghost) {
      if (Math.hypot(event.clientX - held.x, event.clientY - held.y) < 5) return;
      held.ghost = make("div", "chip ghost", String(held.place + 1));
      document.body.append(held.ghost);
      document.body.classList.add("dragging");
    }
    held.ghost.style.transform = `translate(${event.clientX}px, ${event.clientY}px)`;
    const target = under(event);
    tray.querySelectorAll(".over").forEach((other) => other !== target && other.classList.remove("over"));
    if (target) target.classList.add("over");
  });

  function letGo(event, landed) {
    if (!held || event.pointerId !== held.id) return;
    const { place, ghost } = held;
    held = null;
    if (!ghost) return; // the pointer did not move, so that a click follows
    const target = landed ? under(event) : null;
    ghost.remove();
    document.body.classList.remove("dragging");
    document.addEventListener("click", swallow, { capture: true });
    setTimeout(() => document.removeEventListener("click", swallow, { capture: true }));
    joins = false;
    const [how, index] = target ? target.dataset.drop.split(" ") : [];
    if (how === "pool") drop(place);
    else if (how) put(place, Number(index), how === "with");
    else show();
  }

  function swallow(event) {
    event.preventDefault();
    event.stopPropagation();
  }

  document.addEventListener("pointerup", (event) => letGo(event, true));
  document.addEventListener("pointercancel", (event) => letGo(event, false));

  // ---- buttons and fields

  cards.forEach((card, place) => card.querySelector(".pick").addEventListener("click", () => {
    if (count > 2 && !unranked().includes(place)) drop(place);
    else pick(place);
  }));
  document.getElementById("tie").addEventListener("click", tieAll);
  form.addEventListener("input", show);
  form.addEventListener("change", show);
  note.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
  });

  function send() {
    if (!submit.disabled) form.requestSubmit(submit);
  }

  form.addEventListener("submit", (event) => {
    if (sent || submit.disabled) {
      event.preventDefault();
      return;
    }
    form.elements.seconds.value = spent().toFixed(3);
    sent = true;
    submit.disabled = true;
  });

  // ---- a draft, so that a reload loses nothing; it is kept after sending, for undoing

  let before = 0; // seconds spent on earlier pages
  const inSight = stopwatch();
  const spent = () => before + inSight();

  function keep() {
    const draft = {
      at: Date.now(), groups, verdict: verdict(), confidence: form.elements.confidence.value, note: note.value,
      seconds: spent(),
    };
    tryStoring(() => localStorage.setItem(draftName, JSON.stringify(draft)));
  }

  function recall() {
    let draft;
    try {
      const names = Object.keys(localStorage).filter((name) => name.startsWith("textenv draft "));
      const week = Date.now() - 7 * 24 * 3600 * 1000;
      names.forEach((name) => {
        if (!(JSON.parse(localStorage.getItem(name)).at > week)) localStorage.removeItem(name);
      });
      draft = JSON.parse(localStorage.getItem(draftName));
    } catch {
      return;
    }
    if (!draft) return;
    groups = draft.groups;
    radio("verdict", draft.verdict).checked = true;
    if (draft.confidence) radio("confidence", draft.confidence).checked = true;
    note.value = draft.note;
    before = draft.seconds;
  }

  document.addEventListener("visibilitychange", () => { if (document.hidden) keep(); });
  window.addEventListener("pagehide", () => { if (!sent) keep(); });

  // ---- clips

  function replay() {
    form.querySelectorAll("video").forEach((video) => { video.currentTime = 0; video.play(); });
    form.querySelectorAll("img.clip").forEach((image) => { image.src = image.src; }); // begins again
  }

  // ---- keys

  function choose(name, value) {
    radio(name, value).checked = true;
    show();
  }

  function key(event) {
    const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code); // by its place: with Shift, layouts differ
    const inRadios = event.target.matches("input[type=radio]");
    const editing = edits;
    if (editing) {
      edits = false;
      show();
    }
    if (digit && event.shiftKey && event.code.startsWith("Digit")) {
      if (Number(digit[1]) > 5) return false;
      choose("confidence", digit[1]);
      return true;
    }
    if (digit) {
      if (Number(digit[1]) > count) return false;
      if (editing) cards[Number(digit[1]) - 1].querySelector(".edit").click();
      else pick(Number(digit[1]) - 1);
      return true;
    }
    switch (event.key) {
      case "ArrowLeft":
      case "ArrowRight":
        if (count !== 2 || inRadios || event.target.closest(".text, video")) return false;
        pick(event.key === "ArrowLeft" ? 0 : 1);
        return true;
      case "=":
        if (count === 2) tieAll();
        else if (groups.length && unranked().length) { joins = !joins; show(); }
        return true;
      case "Backspace":
        if (groups.length) drop(groups.at(-1).at(-1));
        return true;
      case "Enter":
        if (event.repeat || event.target.closest("button, a, summary")) return false;
        send();
        return true;
      case "?":
        flip("keys");
        return true;
    }
    switch (event.key.toLowerCase()) {
      case "t": tieAll(); return true;
      case "b": choose("verdict", "both_bad"); return true;
      case "c": choose("verdict", "cant_tell"); return true;
      case "e": edits = !editing && writing !== null; show(); return true;
      case "g": flip("guidelines"); return true;
      case "n": note.focus(); return true;
      case "r": replay(); return true;
    }
    return false;
  }

  recall();
  show();
  keepAlive(form, () => sent);
  rememberGuidelines();
  return { key };
}
