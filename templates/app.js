// What the page does beyond its plain self: numbers stay live, and all rows can be ticked at once.
"use strict";

const live = document.getElementById("live");
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

if (verdict) {
  const button = document.createElement("button");
  let source = null;
  const start = () => {
    source = new EventSource("/dashboard/events");
    source.onmessage = (event) => update(JSON.parse(event.data));
    source.onerror = () => { // too many live pages, or the login is over: the browser does not try again
      if (source && source.readyState === EventSource.CLOSED) {
        source = null;
        button.textContent = "Not live: go on";
      }
    };
    button.textContent = "Live: pause";
  };
  button.type = "button";
  button.onclick = () => {
    if (source) {
      source.close();
      source = null;
      button.textContent = "Paused: go on";
    } else start();
  };
  live.append(button);
  start();
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
