// What the page does beyond its plain self: numbers stay live, and all rows can be ticked at once.
"use strict";

const EVERY_MS = 2000;
const SLOWEST_MS = 30000; // while the dashboard fails: the wait doubles up to this
const LIMIT_MS = 10000; // of one request

const verdict = document.querySelector("[data-live=verdict]");

function show(name, text) {
  const place = document.querySelector(`[data-live="${name}"]`);
  if (place && place.textContent !== text) place.textContent = text;
}

function update(news) {
  for (const [name, text] of Object.entries(news.numbers)) show(name, text);
  const links = [...verdict.querySelectorAll("a")];
  if (links.map((a) => a.textContent).join(" ") === news.verdict.map(([text]) => text).join(" ")) return;
  if (verdict.contains(document.activeElement)) return; // nobody's focus is taken away
  verdict.className = "verdict " + news.level;
  verdict.replaceChildren(...news.verdict.flatMap(([text, href]) => {
    const a = document.createElement("a");
    a.href = href;
    a.textContent = text;
    return [a, " "];
  }));
}

// Each request ends before the next begins, so no tab holds a connection. States: live; lost (tries
// again by itself); ended (the login is gone: each further try would count as a wrong password);
// paused. A hidden tab asks for nothing.
if (verdict) {
  const labels = {
    live: "Live: pause",
    lost: "Disconnected: resume",
    ended: "Disconnected: resume",
    paused: "Paused: resume",
  };
  const button = document.createElement("button");
  let state = "live", failures = 0, timer = 0;
  let turn = 0; // whatever was asked in an earlier turn is ignored

  const enter = (next) => {
    state = next;
    if (button.textContent !== labels[next]) button.textContent = labels[next];
  };
  const stop = () => {
    turn++;
    clearTimeout(timer);
  };
  const ask = async () => {
    stop();
    const mine = turn;
    let news = null, status = 0;
    try {
      const answer = await fetch("/dashboard/live.json", { signal: AbortSignal.timeout(LIMIT_MS) });
      status = answer.status;
      if (answer.ok) news = await answer.json();
    } catch { /* no answer, or only a part of one: as bad as a wrong one */ }
    if (mine !== turn) return;
    if (news) update(news);
    failures = news ? 0 : failures + 1;
    enter(news ? "live" : status === 401 ? "ended" : "lost");
    if (state !== "ended") timer = setTimeout(ask, Math.min(EVERY_MS * 2 ** failures, SLOWEST_MS));
  };

  button.type = "button";
  button.onclick = () => {
    if (state === "live") {
      stop();
      enter("paused");
    } else {
      failures = 0;
      enter("live");
      ask();
    }
  };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) stop();
    else if (state === "live" || state === "lost") ask();
  });
  enter("live");
  document.getElementById("live").append(button);
  if (!document.hidden) ask();
}

for (const table of document.querySelectorAll("table[data-tick]")) {
  const boxes = table.querySelectorAll(`tbody input[name=${table.dataset.tick}]`);
  if (!boxes.length) continue;
  const all = document.createElement("input");
  all.type = "checkbox";
  all.setAttribute("aria-label", "Tick all on this page");
  all.onchange = () => boxes.forEach((box) => { box.checked = all.checked; });
  table.querySelector("thead th").replaceChildren(all);
}
