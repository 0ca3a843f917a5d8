# SPDX-License-Identifier: GPL-3.0-or-later
"""A fake model API on 127.0.0.1 for the real agents' command lines: scripted replies, recorded requests.

The answers are given by aimock (https://github.com/CopilotKit/aimock, MIT), which speaks Anthropic Messages, OpenAI
Responses and Chat Completions, and Gemini, all streaming. A door before it records the requests as they were sent,
because aimock's own journal translates them and drops what it does not know. For Python tests:

    with ModelAPI() as api:
        api.script(reply("I will look.", tool("Bash", command="ls")), reply("Done."))
        ...  # run claude with environment_of("claude", api, home)
        assert api.said(1, "file.txt")  # the second request held the tool's result
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.pinned import node_folder, npm_folder
from tests.requirements import REPOSITORY

_START_TIMEOUT = 20.0
_HOP_BY_HOP = ("connection", "content-length", "transfer-encoding", "host", "keep-alive", "accept-encoding")
_LISTENING = re.compile(r"listening on (http://127\.0\.0\.1:\d+)")


def tool(name: str, /, **arguments: Any) -> dict[str, Any]:
    """A call of one of the agent's tools."""
    return {"name": name, "arguments": json.dumps(arguments)}


def reply(
    text: str = "", *tools: Mapping[str, Any], input_tokens: int = 100, output_tokens: int = 20, delay: float = 0
) -> dict[str, Any]:
    """What the model answers to one request. delay: seconds before its first word."""
    response: dict[str, Any] = {"usage": {"input_tokens": input_tokens, "output_tokens": output_tokens}}
    if text or not tools:
        response["content"] = text
    if tools:
        response["toolCalls"] = list(tools)
    return {"response": response, **({"streamingProfile": {"ttft": int(delay * 1000)}} if delay else {})}


def failure(status: int, message: str, kind: str = "api_error") -> dict[str, Any]:
    """An error of the API in place of an answer."""
    return {"response": {"error": {"message": message, "type": kind}, "status": status}}


@dataclass
class Request:
    """One request, as it was sent. status: of the answer, 0 before there is one."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    time: float = field(default_factory=time.monotonic)
    status: int = 0

    @property
    def messages(self) -> list[Any]:
        """The conversation in the form of its API: messages (Anthropic, Chat), input (Responses), contents (Gemini)."""
        found = next((self.body[name] for name in ("messages", "input", "contents") if name in self.body), [])
        return found if isinstance(found, list) else [found]


class _Door(ThreadingHTTPServer):
    """Records each request and lets it through."""

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Passage)
        self.behind = urlsplit(behind).netloc
        self.requests: list[Request] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed in the middle is nothing to print about."""


class _Passage(BaseHTTPRequestHandler):
    server: _Door

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of http.server
        pass

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            body = json.loads(data)
        except ValueError:
            body = {}
        request = Request(self.path, dict(self.headers), body if isinstance(body, dict) else {})
        self.server.requests.append(request)
        self._pass(data, request)

    def do_GET(self) -> None:
        self._pass(b"", Request(self.path, {}, {}))

    def _pass(self, data: bytes, request: Request) -> None:
        behind = http.client.HTTPConnection(self.server.behind, timeout=60)
        with contextlib.closing(behind):
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            behind.request(self.command, self.path, data, headers)
            answer = behind.getresponse()
            request.status = answer.status
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            while chunk := answer.read1(65536):
                self.wfile.write(chunk)
                self.wfile.flush()


class ModelAPI:
    """A running server. url: without a path; OpenAI's clients want url + "/v1"."""

    url: str

    def __enter__(self) -> ModelAPI:
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as failing:
            failing.push(self._stack)
            self._start()
            failing.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-model-api-")))
        (folder / "fixtures").mkdir()
        program = npm_folder(REPOSITORY / "tests" / "fakes" / "aimock") / "@copilotkit" / "aimock" / "dist" / "cli.js"
        log = folder / "log"
        with log.open("wb") as output:
            server = subprocess.Popen(
                [str(node_folder() / "node"), str(program), "--port", "0", "--fixtures", str(folder / "fixtures")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ["PATH"], "HOME": str(folder)},
            )
        self._stack.callback(server.wait)
        self._stack.callback(server.kill)
        end = time.monotonic() + _START_TIMEOUT
        while not (found := _LISTENING.search(log.read_text())):
            if server.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"the fake model API did not start: {log.read_text()}")
            time.sleep(0.02)
        self._aimock = found[1]
        self._door = _Door(found[1])
        self._stack.callback(self._door.server_close)
        self._stack.callback(self._door.shutdown)
        threading.Thread(target=self._door.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._door.server_port}"

    def _call(self, method: str, path: str, data: Any = None) -> Any:
        request = urllib.request.Request(
            f"{self._aimock}/__aimock/{path}",
            method=method,
            data=json.dumps(data).encode() if data is not None else None,
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return json.load(answer)

    def script(self, *turns: Mapping[str, Any], offering: str = "", otherwise: Mapping[str, Any] | None = None) -> None:
        """Forget everything, and answer the next requests in this order.

        offering: only requests that offer this tool count, so that what a program asks beside its work (a title for
        the session) does not. otherwise: the answer to all other requests, and to those after the last turn.
        """
        match = {"toolName": offering} if offering else {}
        fixtures = [{**turn, "match": {**match, "sequenceIndex": index}} for index, turn in enumerate(turns)]
        fixtures.append({**(otherwise or reply("Nothing more was scripted.")), "match": {}})
        self._call("POST", "reset")
        self._call("POST", "fixtures", {"fixtures": fixtures})
        self._door.requests = []

    @property
    def requests(self) -> list[Request]:
        """The requests to a model since the last script, oldest first. Answered or not."""
        return [request for request in self._door.requests if request.messages]

    def said(self, number: int, text: str) -> bool:
        """Tell whether the messages of a request, the first is 0, hold a text."""
        return text in json.dumps(self.requests[number].messages, ensure_ascii=False)


def environment_of(name: str, api: ModelAPI, home: Path) -> dict[str, str]:
    """Return the environment in which an agents' command line uses the fake API and a home folder of its own.

    Where a tool takes what it needs from a file only, the file is written there.
    """
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    environ = {
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "PATH": f"{node_folder()}{os.pathsep}{os.environ['PATH']}",
        "LANG": "C.UTF-8",
        "NO_PROXY": "127.0.0.1",
    }
    if name == "claude":
        environ.update(ANTHROPIC_BASE_URL=api.url, ANTHROPIC_API_KEY="sk-fake")
    elif name == "codex":
        environ.update(CODEX_HOME=str(home / "codex"), FAKE_API_KEY="sk-fake")
        (home / "codex").mkdir(exist_ok=True)
        (home / "codex" / "config.toml").write_text(
            'model = "gpt-5"\nmodel_provider = "fake"\n[model_providers.fake]\nname = "fake"\n'
            f'base_url = "{api.url}/v1"\nwire_api = "responses"\nenv_key = "FAKE_API_KEY"\n'
            "supports_websockets = false\nrequest_max_retries = 0\nstream_max_retries = 0\n"
        )
    elif name == "qwen":
        environ.update(OPENAI_BASE_URL=f"{api.url}/v1", OPENAI_API_KEY="sk-fake", OPENAI_MODEL="fake-model")
        _settings(home / ".qwen", {"security": {"auth": {"selectedType": "openai"}}, "telemetry": {"enabled": False}})
    elif name == "gemini":
        environ.update(GOOGLE_GEMINI_BASE_URL=api.url, GEMINI_API_KEY="fake")
        _settings(home / ".gemini", {"security": {"auth": {"selectedType": "gemini-api-key"}}})
    elif name == "opencode":
        options = {"baseURL": f"{api.url}/v1", "apiKey": "sk-fake"}
        models = {"fake-model": {"cost": {"input": 2, "output": 10}}}
        provider = {"npm": "@ai-sdk/openai-compatible", "name": "Fake", "options": options, "models": models}
        config = {"provider": {"fake": provider}, "model": "fake/fake-model", "small_model": "fake/fake-model"}
        environ.update(OPENCODE_CONFIG_CONTENT=json.dumps(config), OPENCODE_DISABLE_MODELS_FETCH="1")
    elif name == "aider":
        environ.update(OPENAI_API_BASE=f"{api.url}/v1", OPENAI_API_KEY="sk-fake", AIDER_MODEL="openai/gpt-4o")
        environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True")
    return environ


def _settings(folder: Path, data: Mapping[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(data))
