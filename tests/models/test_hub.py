"""Checkpoints of the hub: from a server that answers as the hub does, and without one, from the cache."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from regard.models.checkpoint import read_checkpoint
from regard.models.hub import fetch, is_hub_id
from tests.models.small_llama import small_checkpoint

COMMIT = "1" * 40
LOAD = """
import sys, regard
from regard.models import ModelError
try:
    found = regard.load(sys.argv[1])
    print(found.task, sum(p.numel() for p in found.model.parameters()))
except ModelError as error:
    print("ModelError", error)
"""


class Hub(BaseHTTPRequestHandler):
    """Repositories as directories: what the hub says of one, and its files."""

    repositories: dict[str, Path]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def _answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0].strip("/")
        for name, place in self.repositories.items():
            if path.startswith(f"api/models/{name}"):
                return self._describe(name, place, path.removeprefix(f"api/models/{name}").strip("/"), body=body)
            if path.startswith(f"{name}/resolve/"):
                file = place / path.removeprefix(f"{name}/resolve/").partition("/")[2]
                if file.is_file():
                    return self._send(200, file.read_bytes(), body=body)
        return self._send(404, b"", body=body, error="RepoNotFound")

    def _describe(self, name: str, place: Path, asked: str, *, body: bool) -> None:
        """What a repository is, or the tree of its files, at a revision."""
        what, _, revision = asked.partition("/")
        if revision not in ("", "main", COMMIT):
            return self._send(404, b"", body=body, error="RevisionNotFound")
        files = {str(f.relative_to(place)): f for f in sorted(place.rglob("*")) if f.is_file()}
        answer: object = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]}
        if what == "tree":
            answer = [{"type": "file", "path": p, "size": f.stat().st_size, "oid": COMMIT} for p, f in files.items()]
        return self._send(200, json.dumps(answer).encode(), body=body, kind="application/json")

    def _send(
        self, code: int, data: bytes, *, body: bool, kind: str = "application/octet-stream", error: str = ""
    ) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hub")
    small_checkpoint(root).rename(root / "good")
    (root / "good/onnx").mkdir()
    (root / "good/onnx/model.onnx").write_bytes(b"large, and of no use here")
    (root / "good/pytorch_model.bin").write_bytes(b"a pickle")
    (root / "pickled").mkdir()
    (root / "pickled/config.json").write_bytes((root / "good/config.json").read_bytes())
    (root / "pickled/pytorch_model.bin").write_bytes(b"a pickle")
    (root / "data").mkdir()
    (root / "data/table.csv").write_text("1,2")
    return {f"people/{name}": root / name for name in ("good", "pickled", "data")}


@pytest.fixture(scope="module")
def hub(repositories: dict[str, Path]) -> Iterator[str]:
    handler = type("Handler", (Hub,), {"repositories": repositories})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def load(source: str, cache: Path, **environment: str) -> str:
    """What a program prints that loads this: `huggingface_hub` reads the environment when it is imported."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    run = subprocess.run(
        [sys.executable, "-c", LOAD, source],
        env=clean | {"HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"} | environment,
        capture_output=True,
        text=True,
        cwd=cache,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_a_checkpoint_is_fetched_once_and_found_again_without_the_hub(
    repositories: dict[str, Path], hub: str, tmp_path: Path
):
    parameters = sum(p.numel() for p in read_checkpoint(repositories["people/good"]).model.parameters())
    assert load("people/good", tmp_path, HF_ENDPOINT=hub) == f"generate {parameters}"
    names = {path.name for path in tmp_path.rglob("snapshots/*/*")}
    assert names >= {"config.json", "model.safetensors"}
    assert not names & {"onnx", "pytorch_model.bin"}
    assert load("people/good", tmp_path, HF_HUB_OFFLINE="1") == f"generate {parameters}"
    assert load("people/good@main", tmp_path, HF_ENDPOINT="http://127.0.0.1:9") == f"generate {parameters}"


def test_pickles_are_refused_before_they_are_fetched(hub: str, tmp_path: Path):
    answer = load("people/pickled", tmp_path, HF_ENDPOINT=hub)
    assert "ModelError people/pickled has its weights as pytorch_model.bin alone" in answer
    assert "run any code" in answer
    assert not [*tmp_path.rglob("pytorch_model.bin")]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("people/nobody", "'people/nobody' is neither a directory here nor to be had: it is not on the hub"),
        ("people/good@never", "it has no revision 'never'"),
        ("people/data", "it has no config.json; it has table.csv"),
    ],
)
def test_what_the_hub_does_not_have(hub: str, tmp_path: Path, source: str, reason: str):
    answer = load(source, tmp_path, HF_ENDPOINT=hub)
    assert answer.startswith("ModelError") and reason in answer
    assert "\n" not in answer


def test_without_hub_and_copy_the_message_says_what_was_looked_for_and_where(tmp_path: Path):
    answer = load("people/good@v2", tmp_path, HF_HUB_OFFLINE="1")
    assert "'people/good' is not a directory here, and the hub cannot be reached" in answer
    assert "revision v2" in answer and str(tmp_path / "hub") in answer


@pytest.mark.parametrize("text", ["owner/name", "owner/name@main", "o/n.v1-2_x@refs/pr/1"])
def test_hub_ids(text: str):
    assert is_hub_id(text)


@pytest.mark.parametrize("text", ["name", "a/b/c", "/a/b", "../a", "a/b@", "a b/c", "a/.."])
def test_no_hub_ids(text: str):
    assert not is_hub_id(text)
    with pytest.raises(ValueError, match="is no hub id"):
        fetch(text)
