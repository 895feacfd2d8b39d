// The page's only script. Pages can be read and used without it; it adds local times, live views and uploads.
"use strict";

const MOST_CHARACTERS = 1 << 20; // of an output that is shown

function localTimes(root) {
  const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (!Number.isNaN(at.valueOf())) time.textContent = format.format(at);
  }
}

function mark(element, text, lost) {
  const section = element.closest("section");
  const live = section && section.querySelector(".live");
  if (!live) return;
  live.hidden = !text;
  live.textContent = text;
  live.classList.toggle("lost", Boolean(lost));
}

function follow(element, address, handlers) {
  const source = new EventSource(address);
  source.addEventListener("open", () => mark(element, "live"));
  source.addEventListener("error", () => mark(element, "connecting", true));
  for (const [name, handler] of Object.entries(handlers)) {
    source.addEventListener(name, (event) => handler(JSON.parse(event.data), source));
  }
  addEventListener("pagehide", () => source.close());
  return source;
}

// The server's own templates, escaped there.
function put(element, html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  localTimes(template.content);
  element.replaceChildren(template.content);
}

function rows(element) {
  follow(element, element.dataset.live, {
    rows: (data) => {
      const focused = element.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
      put(element, data.html);
      if (focused) {
        const again = [...element.querySelectorAll("a")].find((one) => one.getAttribute("href") === focused);
        if (again) again.focus();
      }
    },
  });
}

// A carriage return without a newline goes back to the beginning of its line, as on a terminal.
function append(old, text) {
  let shown = old;
  let overwrite = shown.endsWith("\r");
  if (overwrite) shown = shown.slice(0, -1);
  for (const [index, part] of text.split("\r").entries()) {
    if (index > 0) overwrite = true;
    if (part === "") continue;
    if (overwrite && !part.startsWith("\n")) shown = shown.slice(0, shown.lastIndexOf("\n") + 1);
    overwrite = false;
    shown += part;
  }
  if (overwrite) shown += "\r";
  return shown.length > MOST_CHARACTERS ? shown.slice(-MOST_CHARACTERS) : shown;
}

function output(element) {
  let text = element.textContent;
  follow(element, element.dataset.output, {
    output: (data) => {
      put(document.getElementById("facts"), data.facts);
      if (!data.text) return;
      const below = element.scrollHeight - element.scrollTop - element.clientHeight < 40;
      text = append(text, data.text);
      element.textContent = text;
      if (below) element.scrollTop = element.scrollHeight;
    },
    again: () => {
      text = "";
      element.textContent = "";
    },
    end: (_, source) => {
      source.close();
      location.reload();
    },
  });
  element.scrollTop = element.scrollHeight;
}

// Sends each file as it is, with progress; without this script the form itself sends them.
function uploads(form) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const files = [...form.querySelector("input[type=file]").files];
    const button = form.querySelector("button");
    const status = form.querySelector("[role=status]");
    const bar = form.querySelector("progress");
    button.disabled = true;
    bar.hidden = false;
    for (const [index, file] of files.entries()) {
      status.textContent = `${file.name} (${index + 1} of ${files.length})`;
      const problem = await send(form.dataset.upload + encodeURIComponent(file.name), file, bar);
      if (problem) {
        status.textContent = problem;
        status.className = "bad";
        button.disabled = false;
        bar.hidden = true;
        return;
      }
    }
    location.assign(form.dataset.after);
  });
}

function send(address, file, bar) {
  return new Promise((resolve) => {
    const request = new XMLHttpRequest();
    request.open("PUT", address);
    request.upload.addEventListener("progress", (event) => {
      bar.value = event.total ? event.loaded / event.total : 1;
    });
    request.addEventListener("load", () => {
      if (request.status < 300) return resolve("");
      let message = `the server answered ${request.status}`;
      try {
        const error = JSON.parse(request.responseText).error;
        message = [error.message, error.hint].filter(Boolean).join("; ");
      } catch {
        // an answer of a proxy
      }
      resolve(message);
    });
    request.addEventListener("error", () => resolve("the connection was lost; try again"));
    request.send(file);
  });
}

function copies(button) {
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
  });
}

// Asks again whether a login has been confirmed.
function again(form) {
  setTimeout(() => form.requestSubmit(), 1000 * Number(form.dataset.again));
}

localTimes(document);
document.querySelectorAll("form[data-again]").forEach(again);
document.querySelectorAll("[data-live]").forEach(rows);
document.querySelectorAll("[data-output]").forEach(output);
document.querySelectorAll("form[data-upload]").forEach(uploads);
document.querySelectorAll("button[data-copy]").forEach(copies);
