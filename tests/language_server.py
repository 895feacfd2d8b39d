"""The texts that an editor shows: questions to pyright's language server, which Pylance is made of."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class LanguageServer:
    """A server for one program in a directory of its own."""

    def __init__(self, place: Path, text: str) -> None:
        self._numbers = itertools.count(1)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pyright.langserver", "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._uri = (place / "program.py").as_uri()
        folder = {"uri": place.as_uri(), "name": "place"}
        hover = {"hover": {"contentFormat": ["markdown"]}}
        self.ask(
            "initialize",
            processId=None,
            rootUri=place.as_uri(),
            workspaceFolders=[folder],
            capabilities={"workspace": {"configuration": True}, "textDocument": hover},
        )
        self._send(method="initialized", params={})
        document = {"uri": self._uri, "languageId": "python", "version": 1, "text": text}
        self._send(method="textDocument/didOpen", params={"textDocument": document})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def hover(self, line: int, character: int) -> str:
        """Return the text that is shown for the name at a position; both count from 0."""
        position = {"line": line, "character": character}
        found = self.ask("textDocument/hover", textDocument={"uri": self._uri}, position=position)
        return str(found["contents"]["value"]) if found else ""

    def ask(self, method: str, **params: Any) -> Any:
        """Return the answer to a request; the server's own questions meanwhile are answered."""
        number = next(self._numbers)
        self._send(id=number, method=method, params=params)
        while True:
            message = self._receive()
            if "method" not in message and message["id"] == number:
                return message["result"]
            if "id" in message:
                answer: Any = None
                if message["method"] == "workspace/configuration":
                    answer = [{"pythonPath": sys.executable} for _ in message["params"]["items"]]
                self._send(id=message["id"], result=answer)

    def _send(self, **message: Any) -> None:
        assert self._process.stdin is not None
        data = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(data) + data)
        self._process.stdin.flush()

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        headers = {}
        while line := self._process.stdout.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value
        assert headers, "the language server has ended"
        return json.loads(self._process.stdout.read(int(headers["content-length"])))
