"""As much of the Hub's HTTP interface as publishing and opening models takes, in memory, on this machine alone.

    with HubStub() as hub:
        subprocess.run(..., env={**os.environ, **hub.environment(tmp_path)})
        hub.files("me/model")  # name -> bytes

Writing needs the token that `environment` sets, reading needs none. Large files (`*.safetensors`) go through the LFS
batch interface, all others are part of the commit.
"""

import base64
import hashlib
import http.server
import json
import re
import threading
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


TOKEN = "hf_stub"
USER = "me"


class HubStub(http.server.ThreadingHTTPServer):
    """Attributes:

    repositories: id -> branch -> name -> bytes.
    commits: (id, branch, message) of each, in order.
    private: id -> whether it was made private.
    refuse_commits: answer every commit with an error of the server.
    fetched: names of the files that were read.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.commits: list[tuple[str, str, str]] = []
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.refuse_commits = False
        self.fetched: set[str] = set()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """Variables that make a process use this Hub, with caches of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }

    def files(self, repository: str, branch: str = "main") -> dict[str, bytes]:
        return self.repositories[repository][branch]

    def commit(self, repository: str, branch: str, lines: list[dict]) -> None:
        files = self.files(repository, branch)
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.commits.append((repository, branch, value["summary"]))
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]


def _digest(files: dict[str, bytes]) -> str:
    """A commit's name: the hash of its contents."""
    return hashlib.sha1(b"".join(name.encode() + content for name, content in sorted(files.items()))).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: HubStub

    def do_HEAD(self):
        self.route("HEAD")

    def do_GET(self):
        self.route("GET")

    def do_POST(self):
        self.route("POST")

    def do_PUT(self):
        self.route("PUT")

    def route(self, method: str) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if (
            method in ("POST", "PUT")
            and TOKEN not in self.headers.get("Authorization", "")
            and "/lfs/" not in url.path
        ):
            return self.answer(401, {"error": "a token is needed"})
        for methods, pattern, handler in _ROUTES:
            if method in methods.split() and (match := re.fullmatch(pattern, unquote(url.path))):
                found = match.groupdict()
                if "id" in found and found["id"] not in self.server.repositories:
                    return self.answer(404, {"error": "no such repository"}, {"X-Error-Code": "RepoNotFound"})
                if handler in (_Handler.preupload, _Handler.commit) and found["branch"] not in self.branches(
                    found["id"]
                ):
                    return self.answer(404, {"error": "no such branch"}, {"X-Error-Code": "RevisionNotFound"})
                return handler(self, **found)
        return self.answer(404, {"error": f"the stub has no {method} {url.path}"}, {"X-Error-Code": "EntryNotFound"})

    def branches(self, id: str) -> dict[str, dict[str, bytes]]:
        return self.server.repositories[id]

    def answer(self, status: int, content: dict | list | bytes, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args):
        pass

    # ---- writing ---------------------------------------------------------------------------------------------------

    def create(self):
        wanted = json.loads(self.body)
        repository = f"{wanted.get('organization') or USER}/{wanted['name']}"
        url = {"url": f"{self.server.url}/{repository}"}
        if repository in self.server.repositories:
            return self.answer(409, {"error": "it exists", **url})
        self.server.repositories[repository] = {"main": {}}
        self.server.private[repository] = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.answer(200, url)

    def branch(self, id: str, branch: str):
        branches = self.branches(id)
        if branch in branches:
            return self.answer(409, {"error": "it exists"})
        branches[branch] = dict(branches["main"])
        self.answer(200, {})

    def validate_yaml(self):
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, id: str, branch: str):
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.answer(200, {"files": modes})

    def lfs_batch(self, id: str):
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}}
            for wanted in json.loads(self.body)["objects"]
        ]
        self.answer(200, {"objects": objects, "transfer": "basic"})

    def lfs_upload(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.answer(400, {"error": "other contents than announced"})
        self.server.objects[oid] = self.body
        self.answer(200, {})

    def commit(self, id: str, branch: str):
        if self.server.refuse_commits:
            return self.answer(500, {"error": "out of order"})
        lines = [json.loads(line) for line in self.body.splitlines()]
        parent = next(line["value"].get("parentCommit") for line in lines if line["key"] == "header")
        if parent not in (None, _digest(self.server.files(id, branch))):
            return self.answer(412, {"error": "a commit has happened since"})
        self.server.commit(id, branch, lines)
        oid = _digest(self.server.files(id, branch))
        self.answer(200, {"commitUrl": f"{self.server.url}/{id}/commit/{oid}", "commitOid": oid})

    # ---- reading ---------------------------------------------------------------------------------------------------

    def files_at(self, id: str, revision: str) -> dict[str, bytes] | None:
        """Files of a branch, or of a commit that is the newest of its branch."""
        branches = self.branches(id)
        return branches.get(revision) or next((f for f in branches.values() if _digest(f) == revision), None)

    def info(self, id: str, revision: str | None = None):
        files = self.files_at(id, revision or "main") or {}
        siblings = [{"rfilename": name} for name in sorted(files)]
        self.answer(200, {"id": id, "sha": _digest(files), "siblings": siblings, "tags": []})

    def tree(self, id: str, revision: str, folder: str | None = None):
        if folder:
            return self.answer(404, {"error": "no such folder"}, {"X-Error-Code": "EntryNotFound"})
        files = self.files_at(id, revision) or {}
        found = [{"type": "file", "path": n, "size": len(c), "oid": _digest({n: c})} for n, c in sorted(files.items())]
        self.answer(200, found)

    def resolve(self, id: str, revision: str, name: str):
        files = self.files_at(id, revision)
        if files is None:
            return self.answer(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
        headers = {"X-Repo-Commit": _digest(files)}
        if name not in files:
            return self.answer(404, {"error": "no such file"}, {**headers, "X-Error-Code": "EntryNotFound"})
        if self.command == "GET":
            self.server.fetched.add(name)
        etag = hashlib.sha256(files[name]).hexdigest()
        self.answer(200, files[name], {**headers, "ETag": f'"{etag}"'})


_ID = r"(?P<id>[^/]+/[^/]+?)"
_ROUTES = (
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", rf"/api/models/{_ID}/branch/(?P<branch>.+)", _Handler.branch),
    ("POST", rf"/api/models/{_ID}/preupload/(?P<branch>.+)", _Handler.preupload),
    ("POST", rf"/api/models/{_ID}/commit/(?P<branch>.+)", _Handler.commit),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]+)", _Handler.lfs_upload),
    ("GET", rf"/api/models/{_ID}", _Handler.info),
    ("GET", rf"/api/models/{_ID}/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", rf"/api/models/{_ID}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", _Handler.tree),
    ("GET HEAD", rf"/{_ID}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.resolve),
)
