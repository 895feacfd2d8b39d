// The script of an endpoint's page: calls it without leaving the page, and shows the answer as it comes, as text alone.
"use strict";

const callForm = document.getElementById("call-form");
const shown = document.getElementById("call-answer");
const facts = document.getElementById("call-facts");
const problem = document.getElementById("call-problem");
const file = document.getElementById("call-file");
const stopper = document.getElementById("call-stop");
const MOST_PRETTY = 1 << 18;

function secondsText(seconds) {
  return seconds < 0.1 ? `${(1000 * seconds).toPrecision(3)} ms` : `${seconds.toPrecision(3)} s`;
}

function sizeText(bytes) {
  return bytes < 1024 ? `${bytes} B` : bytes < 1 << 20 ? `${(bytes / 1024).toPrecision(3)} KiB` : `${(bytes / (1 << 20)).toPrecision(3)} MiB`;
}

function tell(head, rest) {
  facts.replaceChildren();
  if (head) {
    const status = document.createElement("span");
    status.id = "call-status";
    status.className = `state ${head.status < 400 ? "good" : "bad"}`;
    status.textContent = head.status;
    facts.append(status, " ");
  }
  facts.append(rest);
}

function wrong(message, hint) {
  problem.textContent = [message, hint].filter(Boolean).join("; ");
  problem.hidden = !message;
}

async function* linesOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line) yield JSON.parse(line);
  }
}

function pretty(text, type) {
  if (!type.includes("json") || type.includes("ndjson") || text.length > MOST_PRETTY) return text;
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

// An image, sound or video from the server's own address; another file can be saved.
function showFile(event) {
  if (event.element) {
    const element = document.createElement(event.element);
    if (event.element === "img") element.alt = "The answer";
    else element.controls = true;
    element.src = event.address;
    file.append(element);
  }
  const line = document.createElement("p");
  const link = document.createElement("a");
  link.href = event.address;
  link.download = "answer";
  link.textContent = "Save the answer";
  line.append(link);
  file.append(line);
  shown.hidden = true;
}

// Pieces of a text are put on the page together, a while after each other: each change is a layout of the whole text, and a
// slow machine has time left for buttons.
let pending = "";
let timer = 0;
let wait = 50;

function put() {
  clearTimeout(timer);
  timer = 0;
  if (!pending) return;
  const began = performance.now();
  const below = shown.scrollHeight - shown.scrollTop - shown.clientHeight < 40;
  shown.append(pending);
  pending = "";
  if (below) shown.scrollTop = shown.scrollHeight;
  wait = Math.min(2000, Math.max(50, 4 * (performance.now() - began)));
}

async function called(signal) {
  let head = null;
  const began = performance.now();
  const response = await fetch(callForm.getAttribute("action"), {
    method: "POST",
    headers: { Accept: "application/x-ndjson" },
    body: new URLSearchParams(new FormData(callForm)),
    signal,
  });
  if (!(response.headers.get("content-type") || "").includes("ndjson")) {
    wrong(`the server answered ${response.status}`, "load the page again");
    return;
  }
  for await (const event of linesOf(response)) {
    if (event.event === "head") {
      head = event;
      tell(head, `answers since ${secondsText(event.seconds)}${event.type ? `, ${event.type}` : ""}`);
    } else if (event.event === "text") {
      pending += event.text;
      timer ||= setTimeout(put, wait);
    } else if (event.event === "file") {
      showFile(event);
    } else if (event.event === "end") {
      put();
      shown.textContent = pretty(shown.textContent, head.type);
      tell(head, `${secondsText(event.seconds)}, ${sizeText(event.bytes)}${head.type ? `, ${head.type}` : ""}`);
      wrong(event.note, "");
    } else {
      tell(head, event.seconds ? `after ${secondsText(event.seconds)}` : "");
      wrong(event.message, event.hint);
    }
  }
  shown.dataset.seconds = (performance.now() - began) / 1000;
}

callForm.addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  const button = callForm.querySelector("button.primary");
  const control = new AbortController();
  const end = () => control.abort();
  shown.textContent = "";
  shown.hidden = false;
  file.replaceChildren();
  shown.dataset.state = "busy";
  wrong("", "");
  tell(null, "Waiting for the answer; a worker may have to start first.");
  button.disabled = true;
  stopper.hidden = false;
  stopper.addEventListener("click", end);
  try {
    await called(control.signal);
  } catch (error) {
    wrong(control.signal.aborted ? "stopped" : "the connection was lost", control.signal.aborted ? "" : "try again");
  }
  put();
  stopper.removeEventListener("click", end);
  stopper.hidden = true;
  button.disabled = false;
  shown.dataset.state = "over";
});

for (const one of document.querySelectorAll("form[data-submits]")) {
  one.querySelector("button").hidden = true;
  one.querySelector("select").addEventListener("change", () => one.requestSubmit());
}
