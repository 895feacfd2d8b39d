// Workers for pages that are opened from `file://`, where browsers refuse worker scripts: the script runs in a hidden
// frame instead. It does as much of the interface as the search of this site uses: `onmessage`, `postMessage`,
// `terminate`. Pages that a server sends keep the browser's own workers.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(address) {
      this.onmessage = null;
      this.onerror = null;
      this.waiting = []; // messages that were sent before the script had run
      this.scope = null;
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = "<!doctype html>"; // the same origin as the page's
      const script = new URL(address, document.baseURI).href;
      this.frame.addEventListener("load", () => this.start(script), { once: true });
      document.documentElement.append(this.frame);
    }

    start(address) {
      const scope = this.frame.contentWindow;
      scope.postMessage = (data) => this.onmessage && this.onmessage(new MessageEvent("message", { data }));
      const script = scope.document.createElement("script");
      script.addEventListener("load", () => {
        this.scope = scope;
        this.waiting.splice(0).forEach((data) => this.postMessage(data));
      });
      script.addEventListener("error", (event) => this.onerror && this.onerror(event));
      script.src = address;
      scope.document.head.append(script);
    }

    postMessage(data) {
      if (this.scope === null) this.waiting.push(data);
      else setTimeout(() => this.scope && this.scope.onmessage && this.scope.onmessage({ data }));
    }

    terminate() {
      this.scope = null;
      this.frame.remove();
    }
  };
}
