"""Downloads through the Hub's own client, from a local server that speaks its protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

import pytest

from cgconvert.model.tokenizer_files import TOKENIZER_FILES
from cgconvert.sources.hub import GPT2, GPT2_REVISION

REPOSITORY = "Salesforce/codegen-350M-mono"
COMMIT = "0123456789" * 4


class Hub(ThreadingHTTPServer):
    """Repositories by name, each at one commit; `requested` has the path of every request."""

    def __init__(self, repositories: dict[str, tuple[str, Path]]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repositories, self.requested = repositories, list[str]()


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.requested.append(self.path)
        for name, (commit, folder) in self.server.repositories.items():
            if self.path.startswith(f"/api/models/{name}"):
                self._send(json.dumps(self._description(name, commit, folder)).encode())
                return
            if self.path.startswith(f"/{name}/resolve/{commit}/"):
                name = unquote(self.path.partition(f"{commit}/")[2])
                data = (folder / name).read_bytes()
                etag = f'"{hashlib.sha256(data).hexdigest()}"'
                self._send(data, **{"ETag": etag, "X-Repo-Commit": commit})
                return
        self.send_error(404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _description(self, name: str, commit: str, folder: Path) -> object:
        files = [
            {
                "type": "file",
                "path": str(file.relative_to(folder)),
                "size": file.stat().st_size,
                "oid": "0" * 40,
            }
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        ]
        if "/tree/" in self.path:
            return files
        siblings = [{"rfilename": file["path"]} for file in files]
        return {"id": name, "sha": commit, "siblings": siblings}

    def _send(self, data: bytes, **headers: str) -> None:
        self.send_response(200)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def serve(repositories: dict[str, tuple[str, Path]]) -> Hub:
    """Start a server in a thread; the caller shuts it down."""
    server = Hub(repositories)
    Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def hub(
    make_checkpoint: Callable[..., Path], tokenizer_folder: Path, tmp_path: Path
) -> Iterator[Hub]:
    """A repository with the model but no tokenizer, and GPT-2's with the tests' tokenizer."""
    model = make_checkpoint("torch")
    gpt2 = tmp_path / "gpt2"
    gpt2.mkdir()
    for name in TOKENIZER_FILES:
        (model / name).unlink(missing_ok=True)
        if (tokenizer_folder / name).is_file():
            (gpt2 / name).write_bytes((tokenizer_folder / name).read_bytes())
    (model / "training_args.py").write_text("raise SystemExit('run')")
    server = serve({REPOSITORY: (COMMIT, model), GPT2: (GPT2_REVISION, gpt2)})
    yield server
    server.shutdown()


def test_all_files_are_downloaded_from_one_commit(hub: Hub, tmp_path: Path) -> None:
    """A branch is resolved to its commit, which the manifest names."""
    home = tmp_path / "home"
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "cgconvert", "to-gguf", "codegen-350M-mono", "-o", "m.gguf"]
    completed = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert completed.returncode == 0, completed.stderr
    origin = json.loads((tmp_path / "m.gguf.cgconvert.json").read_text())["source"]["origin"]
    assert (origin["hub"], origin["revision"]) == (REPOSITORY, COMMIT)
    fetched = [path.split("/resolve/")[1] for path in hub.requested if "/resolve/" in path]
    assert {path.split("/")[0] for path in fetched} == {COMMIT, GPT2_REVISION}
    assert not any(path.endswith(".py") for path in fetched)
    hub.requested.clear()
    again = [*command[:-1], "again.gguf"]
    assert subprocess.run(again, cwd=tmp_path, env=environment).returncode == 0
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()
    assert not any("/resolve/" in path for path in hub.requested)  # everything is in the cache
