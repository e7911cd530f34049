"""A stand-in for the Hugging Face Hub on the loopback: what its client asks when it pushes and
pulls, over real HTTP.

It keeps repositories in memory, checks tokens, hashes and metadata as the Hub does, and can be told
to fail. LFS files are answered by a redirect to another host name, as from the Hub to its CDN,
where a token must not arrive.
"""

import base64
import hashlib
import io
import json
import re
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import yaml

WRITER, READER, STRANGER = "hf_writer", "hf_reader", "hf_stranger"
_USERS = {WRITER: "ada", READER: "ada", STRANGER: "bob"}
_REGULAR_LIMIT = 1 << 20  # the Hub takes text up to some size into the commit itself


@dataclass(frozen=True)
class Entry:
    """A file of a commit."""

    data: bytes
    lfs: bool

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


@dataclass
class Repo:
    """A repository: commits by hash, and branches and tags that name them."""

    private: bool = False
    gated: bool = False
    sdk: str | None = None
    commits: dict[str, dict[str, Entry]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.commit("main", {})

    def commit(self, branch: str, files: dict[str, Entry]) -> str:
        described = sorted((path, entry.oid) for path, entry in files.items())
        oid = hashlib.sha1(repr((len(self.commits), described)).encode()).hexdigest()
        self.commits[oid] = files
        self.refs[branch] = oid
        return oid

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)

    @property
    def files(self) -> dict[str, Entry]:
        return self.commits[self.refs["main"]]


class Problem(Exception):
    """An answer that is no success, with the headers by which the client knows which."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Message": message, **headers}
        if code:
            self.headers["X-Error-Code"] = code


class HubServer(ThreadingHTTPServer):
    """The server; `endpoint` is what HF_ENDPOINT should be."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}  # LFS storage, shared by all repositories
        self.uploads: Counter[str] = Counter()  # completed uploads by sha256
        self.requests: list[str] = []  # "METHOD path" of every request
        self.lock = threading.RLock()
        self.hold: str | None = None  # sha256 of an upload to stop halfway
        self.held, self.release = threading.Event(), threading.Event()
        self.failures = 0  # so many uploads are broken off halfway
        self.busy = False  # answer 503 to everything

    @property
    def port(self) -> int:
        return self.server_address[1]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def repo(self, name: str, kind: str = "model") -> Repo:
        return self.repos[kind, name]

    def handle_error(self, request, client_address):
        """A client that goes away in the middle is part of the tests."""


def audio_table(hub, rate: int, clips: Mapping[str, np.ndarray], **columns: Sequence) -> Entry:
    """A parquet file of clips by name, audio as bytes and path, the Hub's own form; `hub` serves
    it.
    """
    rows = []
    for i, (name, audio) in enumerate(clips.items()):
        file = io.BytesIO()
        soundfile.write(file, audio, rate, format="FLAC")
        rows.append(
            {
                "audio": {"bytes": file.getvalue(), "path": name},
                **{key: of[i] for key, of in columns.items()},
            }
        )
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    entry = Entry(file.getvalue(), lfs=True)
    hub.blobs[entry.sha256] = entry.data
    return entry


@contextmanager
def running_hub():
    server = HubServer()
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, format, *args):
        pass

    # ---- one request

    def _answer(self):
        url = urlsplit(self.path)
        self.server.requests.append(f"{self.command} {unquote(url.path)}")
        try:
            if self.server.busy:
                raise Problem(503, "the Hub is being repaired")
            for method, pattern, action in _ROUTES:
                found = re.fullmatch(pattern, url.path)
                if found and self.command in method:
                    if self.command == "POST":
                        self.body = b"".join(self._body())
                    return action(
                        self,
                        **{k: unquote(v) for k, v in found.groupdict().items() if v is not None},
                    )
            raise Problem(404, f"no such page: {url.path}")
        except Problem as problem:
            headers = {
                **problem.headers,
                "Connection": "close",
            }  # said, or the client may use it once more
            self._send(problem.status, json.dumps({"error": str(problem)}).encode(), headers)
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _body(self):
        """The body in pieces, sent with its length or chunked."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("Content-Length") or 0)
            while left and (piece := self.rfile.read(min(left, 1 << 14))):
                left -= len(piece)
                yield piece

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value, status: int = 200):
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    # ---- who may do what

    def _token(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        if token is not None and token not in _USERS:
            raise Problem(401, "Invalid credentials in Authorization header")
        return token

    def _repo(self, kind: str, name: str, write: bool = False, content: bool = False) -> Repo:
        token = self._token()
        repo = self.server.repos.get((kind, name))
        if repo is None or (repo.private and _USERS.get(token or "") != name.split("/")[0]):
            # the Hub does not tell a stranger which of the two it is
            raise Problem(404 if token else 401, "Repository not found", "RepoNotFound")
        if content and repo.gated and _USERS.get(token or "") != name.split("/")[0]:
            raise Problem(
                403 if token else 401, f"Access to model {name} is restricted", "GatedRepo"
            )
        if write and (token != WRITER or _USERS[token] != name.split("/")[0]):
            raise Problem(403, "you need a token with write permission")
        return repo

    def _commit(self, repo: Repo, revision: str) -> str:
        oid = repo.find(revision)
        if oid is None:
            raise Problem(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    # ---- account and repositories

    def whoami(self):
        token = self._token()
        if token is None:
            raise Problem(401, "Invalid username or password.")
        self._json(
            {
                "type": "user",
                "name": _USERS[token],
                "orgs": [],
                "auth": {"accessToken": {"role": token[3:]}},
            }
        )

    def create(self):
        asked = json.loads(self.body)
        token = self._token()
        if token is None:
            raise Problem(401, "Invalid username or password.")
        owner, kind = asked.get("organization") or _USERS[token], asked.get("type") or "model"
        if token != WRITER or owner != _USERS[token]:
            raise Problem(403, "You don't have the rights to create a model under this namespace")
        name = f"{owner}/{asked['name']}"
        url = f"{self.server.endpoint}/{'' if kind == 'model' else kind + 's/'}{name}"
        with self.server.lock:
            if (kind, name) in self.server.repos:
                return self._json({"error": "You already created this repo", "url": url}, 409)
            if kind == "space" and asked.get("sdk") not in ("gradio", "static", "docker"):
                raise Problem(400, "a Space needs an sdk")
            private = asked.get("visibility") == "private" or asked.get("private", False)
            self.server.repos[kind, name] = Repo(private=private, sdk=asked.get("sdk"))
        self._json({"url": url, "name": name})

    def branch(self, kind, name, branch):
        repo = self._repo(kind, name, write=True)
        with self.server.lock:
            if branch in repo.refs:
                return self._json({"error": "Reference already exists"}, 409)
            repo.refs[branch] = self._commit(
                repo, json.loads(self.body or b"{}").get("startingPoint", "main")
            )
        self._json({})

    def info(self, kind, name, revision="main"):
        repo = self._repo(kind, name)
        oid = self._commit(repo, revision)
        siblings = [{"rfilename": path} for path in sorted(repo.commits[oid])]
        gated = "auto" if repo.gated else False
        shared = {
            "id": name,
            "modelId": name,
            "sha": oid,
            "private": repo.private,
            "gated": gated,
            "tags": [],
        }
        self._json({**shared, "downloads": 0, "likes": 0, "siblings": siblings})

    def tree(self, kind, name, revision, folder=""):
        repo = self._repo(kind, name)  # the list of a gated repository is public
        oid = self._commit(repo, revision)
        recursive = "recursive=true" in urlsplit(self.path).query.lower()
        top = folder.strip("/") + "/" if folder.strip("/") else ""
        entries, folders = [], set()
        for path, entry in sorted(repo.commits[oid].items()):
            if not path.startswith(top):
                continue
            if not recursive and "/" in path[len(top) :]:
                folders.add(top + path[len(top) :].split("/")[0])
                continue
            described = {
                "type": "file",
                "path": path,
                "size": len(entry.data),
                "oid": entry.git_oid,
            }
            if entry.lfs:
                described["lfs"] = {
                    "oid": entry.sha256,
                    "size": len(entry.data),
                    "pointerSize": 130,
                }
            entries.append(described)
        self._json(
            [
                *entries,
                *(
                    {"type": "directory", "path": path, "size": 0, "oid": oid}
                    for path in sorted(folders)
                ),
            ]
        )

    # ---- uploads

    def validate_yaml(self):
        """The checks of the Hub's metadata that our cards could fail."""
        content = json.loads(self.body)["content"]
        found = re.match(r"---\n(.*?)\n---\n", content, flags=re.DOTALL)
        errors = [] if found else ["no metadata"]
        try:
            data = yaml.safe_load(found.group(1)) if found else {}
        except yaml.YAMLError as error:
            data, errors = {}, [str(error)]
        for name in ("license", "pipeline_tag", "library_name"):
            if name in data and not re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", str(data[name])):
                errors.append(f'"{name}" must be a known identifier')
        for index in data.get("model-index", []):
            for result in index["results"]:
                if (
                    not {"task", "dataset", "metrics"} <= result.keys()
                    or "type" not in result["dataset"]
                ):
                    errors.append('"model-index[0].results[0]" lacks task, dataset or metrics')
                if any(
                    not isinstance(metric["value"], (int, float)) for metric in result["metrics"]
                ):
                    errors.append("a metric's value must be a number")
        self._json(
            {"errors": [{"message": e} for e in errors], "warnings": []}, 400 if errors else 200
        )

    def preupload(self, kind, name, revision):
        repo = self._repo(kind, name, write=True)
        files = repo.commits[self._commit(repo, revision)]
        answers = []
        for file in json.loads(self.body)["files"]:
            binary = b"\0" in base64.b64decode(file["sample"]) or file["path"].endswith(
                ".safetensors"
            )
            mode = "lfs" if binary or file["size"] > _REGULAR_LIMIT else "regular"
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if file["path"] in files:
                answer["oid"] = files[file["path"]].oid
            answers.append(answer)
        self._json({"files": answers})

    def lfs_batch(self, name, prefix=""):
        self._repo(_kind(prefix), name, write=True)
        objects = []
        for item in json.loads(self.body)["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.server.blobs:
                storage = f"http://localhost:{self.server.port}/storage/{item['oid']}?signature=1"
                verify = f"{self.server.endpoint}/{prefix}{name}.git/info/lfs/verify"
                answer["actions"] = {
                    "upload": {"href": storage},
                    "verify": {"href": verify, "header": {}},
                }
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, oid):
        """A signed address: no token, and the bytes must hash to the name."""
        if "Authorization" in self.headers:
            raise Problem(400, "a token left the Hub")
        size, data = int(self.headers.get("Content-Length") or 1 << 62), bytearray()
        for piece in self._body():
            data += piece
            if len(data) >= size // 2 and oid == self.server.hold:
                self.server.held.set()
                self.server.release.wait(60)
            if len(data) >= size // 2 and self.server.failures:
                self.server.failures -= 1
                self.connection.close()
                return
        if hashlib.sha256(data).hexdigest() != oid:
            raise Problem(400, "the content does not match its hash")
        with self.server.lock:
            self.server.blobs[oid] = bytes(data)
            self.server.uploads[oid] += 1
        self._send(200, headers={"ETag": f'"{oid}"'})

    def lfs_verify(self, name, prefix=""):
        self._repo(_kind(prefix), name, write=True)
        asked = json.loads(self.body)
        if len(self.server.blobs.get(asked["oid"], b"")) != asked["size"]:
            raise Problem(404, "no such object")
        self._json({})

    def commit(self, kind, name, revision):
        repo = self._repo(kind, name, write=True)
        lines = [json.loads(line) for line in self.body.splitlines()]
        if lines[0]["key"] != "header" or not lines[0]["value"]["summary"]:
            raise Problem(400, "a commit needs a summary")
        with self.server.lock:
            files = dict(repo.commits[self._commit(repo, revision)])
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = Entry(base64.b64decode(value["content"]), lfs=False)
                elif line["key"] == "lfsFile":
                    if value["oid"] not in self.server.blobs:
                        raise Problem(400, f"the LFS object {value['oid']} was never uploaded")
                    files[value["path"]] = Entry(self.server.blobs[value["oid"]], lfs=True)
                elif line["key"] == "deletedFile":
                    if value["path"] not in files:
                        raise Problem(404, "A file with this name doesn't exist", "EntryNotFound")
                    del files[value["path"]]
                else:
                    raise Problem(400, f"unknown operation {line['key']}")
            oid = repo.commit(revision, files)
        prefix = "" if kind == "model" else f"{kind}s/"
        self._json(
            {"commitUrl": f"{self.server.endpoint}/{prefix}{name}/commit/{oid}", "commitOid": oid}
        )

    # ---- downloads

    def resolve(self, name, revision, file, prefix=""):
        repo = self._repo(_kind(prefix), name, content=True)
        oid = self._commit(repo, revision)
        entry = repo.commits[oid].get(file)
        if entry is None:
            raise Problem(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": oid})
        headers = {"X-Repo-Commit": oid, "ETag": f'"{entry.oid}"'}
        if entry.lfs:
            location = f"http://localhost:{self.server.port}/cdn/{entry.sha256}?signature=1"
            headers |= {
                "X-Linked-Etag": f'"{entry.oid}"',
                "X-Linked-Size": str(len(entry.data)),
                "Location": location,
            }
            return self._send(302, headers=headers)
        self._send(200, entry.data, headers)

    def cdn(self, oid):
        if "Authorization" in self.headers:
            raise Problem(400, "a token left the Hub")
        data, headers, status = self.server.blobs[oid], {"ETag": f'"{oid}"'}, 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(wanted.group(1)), min(int(wanted.group(2) or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            data, status = data[start : end + 1], 206
        self._send(status, data, headers)


def _kind(prefix: str) -> str:
    return {"": "model", "spaces/": "space", "datasets/": "dataset"}[prefix]


_NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
_API = rf"/api/(?P<kind>model|space|dataset)s/{_NAME}"
_ROUTES = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("POST", rf"{_API}/branch/(?P<branch>.+)", _Handler.branch),
    ("GET", rf"{_API}/revision/(?P<revision>.+)", _Handler.info),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", _Handler.tree),
    ("GET", _API, _Handler.info),
    (
        "POST",
        rf"/(?P<prefix>spaces/|datasets/)?{_NAME}\.git/info/lfs/objects/batch",
        _Handler.lfs_batch,
    ),
    ("POST", rf"/(?P<prefix>spaces/|datasets/)?{_NAME}\.git/info/lfs/verify", _Handler.lfs_verify),
    ("PUT", r"/storage/(?P<oid>[0-9a-f]{64})", _Handler.upload),
    ("GET", r"/cdn/(?P<oid>[0-9a-f]{64})", _Handler.cdn),
    (
        "GET HEAD",
        rf"/(?P<prefix>spaces/|datasets/)?{_NAME}/resolve/(?P<revision>[^/]+)/(?P<file>.+)",
        _Handler.resolve,
    ),
]
