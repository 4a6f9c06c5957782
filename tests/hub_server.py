"""A small stand-in for the Hub, for the real huggingface_hub client with `HF_ENDPOINT`: models only, in memory."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()


class Repo:
    """A list of commits, each a dictionary of files; `main` is the last one."""

    def __init__(self, private: bool):
        self.private = private
        self.commits: list[tuple[str, dict[str, bytes]]] = []
        self.commit({})

    def commit(self, changes: dict[str, bytes], deletions: Iterable[str] = ()) -> str:
        files = {**(self.commits[-1][1] if self.commits else {}), **changes}
        for path in deletions:
            del files[path]
        listing = json.dumps([len(self.commits), {path: git_oid(content) for path, content in files.items()}])
        self.commits.append((hashlib.sha1(listing.encode()).hexdigest(), files))
        return self.commits[-1][0]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class Hub(ThreadingHTTPServer):
    """
    Serves on loopback within a `with`. `repos` holds what was pushed, `log` the method and path of each request.

    It takes every file as a regular one: no LFS, no Xet, no pull requests, no branches but `main`.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.log: list[str] = []
        self.creations: list[dict] = []

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def answer(self, content: bytes = b"", status: int = 200, **headers: str):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer_json(self, value, status: int = 200):
        self.answer(json.dumps(value).encode(), status, Content_Type="application/json")

    def not_found(self, code: str):
        self.answer(b"{}", 404, X_Error_Code=code, X_Error_Message=code)

    def handle_request(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        self.server.log.append(f"{self.command} {path}")
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                return answer(self, body, **{name: unquote(value) for name, value in match.groupdict().items()})
        return self.answer_json({"error": f"the stand-in has no {self.command} {path}"}, 501)

    do_GET = do_HEAD = do_POST = handle_request

    def create(self, body: bytes):
        request = json.loads(body)
        self.server.creations.append(request)
        name = f"{request.get('organization') or 'me'}/{request['name']}"
        status = 409 if name in self.server.repos else 200
        if status == 200:
            self.server.repos[name] = Repo(request.get("private") or request.get("visibility") == "private")
        self.answer_json({"url": f"{self.server.endpoint}/{name}", "name": name}, status)

    def validate_yaml(self, body: bytes):
        is_card = json.loads(body)["content"].startswith("---\n")
        self.answer_json({"errors": [], "warnings": [] if is_card else [{"message": "empty metadata"}]})

    def preupload(self, body: bytes, repo: str, revision: str):
        files = self.server.repos[repo].at(revision)[1]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "regular",
                "shouldIgnore": False,
                "oid": git_oid(files[file["path"]]) if file["path"] in files else None,
            }
            for file in json.loads(body)["files"]
        ]
        self.answer_json({"files": modes})

    def commit(self, body: bytes, repo: str, revision: str):
        lines = [json.loads(line) for line in body.splitlines()]
        assert all(line["key"] in ("header", "file", "deletedFile") for line in lines), lines
        files = [line["value"] for line in lines if line["key"] == "file"]
        oid = self.server.repos[repo].commit(
            {file["path"]: base64.b64decode(file["content"]) for file in files},
            [line["value"]["path"] for line in lines if line["key"] == "deletedFile"],
        )
        self.answer_json({"commitUrl": f"{self.server.endpoint}/{repo}/commit/{oid}", "commitOid": oid})

    def find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if repo not in self.server.repos:
            self.not_found("RepoNotFound")
            return None
        commit = self.server.repos[repo].at(revision)
        if commit is None:
            self.not_found("RevisionNotFound")
        return commit

    def info(self, body: bytes, repo: str, revision: str = "main"):
        if commit := self.find(repo, revision):
            siblings = [{"rfilename": path} for path in commit[1]]
            private = self.server.repos[repo].private
            self.answer_json({"id": repo, "sha": commit[0], "private": private, "siblings": siblings, "tags": []})

    def tree(self, body: bytes, repo: str, revision: str):
        if commit := self.find(repo, revision):
            self.answer_json(
                [{"type": "file", "path": p, "size": len(c), "oid": git_oid(c)} for p, c in commit[1].items()]
            )

    def resolve(self, body: bytes, repo: str, revision: str, file: str):
        if commit := self.find(repo, revision):
            if file not in commit[1]:
                return self.not_found("EntryNotFound")
            content = commit[1][file]
            self.answer(content, ETag=f'"{git_oid(content)}"', X_Repo_Commit=commit[0], Accept_Ranges="none")
        return None


REPO = r"(?P<repo>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", f"/api/models/{REPO}/preupload/{REVISION}", Handler.preupload),
    ("POST", f"/api/models/{REPO}/commit/{REVISION}", Handler.commit),
    ("GET", f"/api/models/{REPO}", Handler.info),
    ("GET", f"/api/models/{REPO}/revision/{REVISION}", Handler.info),
    ("GET", f"/api/models/{REPO}/tree/{REVISION}", Handler.tree),
    ("HEAD GET", f"/{REPO}/resolve/{REVISION}/(?P<file>.+)", Handler.resolve),
]
