"""A stand-in for the Hugging Face Hub on this machine: the calls that huggingface_hub makes to push and pull a model.

    with HubServer({"secret": User("me")}) as hub:
        subprocess.run([...], env=os.environ | hub.environment("secret"))

Written after huggingface_hub 2.4: create, branch, validate-yaml, preupload, LFS batch and PUT, commit (ndjson),
whoami, model info, tree, refs, resolve (HEAD and GET, redirects of large files, Range). It keeps everything in memory.
`POST /test/drop {"after": n}` lets n more uploads of large files through and drops the connection of all others, until
`{"after": null}`; `GET /test/log` gives [method, path, status] of all requests and empties the list.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LARGE = (".safetensors", ".bin", ".model")  # what .gitattributes of a new repository lists, shortened
LICENCES = ("mit", "apache-2.0", "cc-by-4.0", "cc-by-sa-4.0", "llama3.1", "openrail", "other")
REPOSITORY = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass(frozen=True)
class User:
    """Whose a token is, and what it may do."""

    name: str
    role: str = "write"
    organisations: tuple[str, ...] = ()

    def owns(self, repository: str) -> bool:
        return repository.partition("/")[0] in (self.name, *self.organisations)


@dataclass(frozen=True)
class Blob:
    """A file of a commit."""

    content: bytes
    large: bool = False

    @property
    def git_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.git_id


@dataclass
class Repository:
    """Branches of commits; a commit is all files by their paths."""

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, Blob]) -> str:
        name = hashlib.sha1(repr((branch, len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[name], self.branches[branch] = files, name
        return name

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class Refusal(Exception):
    """An answer that is no success: status, X-Error-Code, X-Error-Message."""

    def __init__(self, status: int, code: str = "", message: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}


class Handler(BaseHTTPRequestHandler):
    """One request; `self.server.hub` is the state."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *words: Any) -> None:
        pass

    def handle_one(self) -> None:
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.path_only = unquote(urlsplit(self.path).path)
        try:
            for method, pattern, answer in ROUTES:
                found = re.fullmatch(pattern, self.path_only)
                if found and self.command in method.split():
                    answer(self, **found.groupdict())
                    return
            raise Refusal(404, "", f"no such call: {self.command} {self.path}")
        except Refusal as refusal:
            codes = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message, **refusal.headers}
            told = {name: value for name, value in codes.items() if value}
            self.answer(json.dumps({"error": refusal.message}).encode(), refusal.status, told)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

    def answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.server.hub.log.append([self.command, self.path_only, status])
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: Any, status: int = 200) -> None:
        self.answer(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    # ------------------------------------------------------------------------------------------------------- who may
    def user(self) -> User | None:
        """Whose token came with the request.

        Raises:
            Refusal: nobody's.
        """
        words = (self.headers.get("Authorization") or "").split()
        if not words:
            return None
        if words[-1] not in self.server.hub.users:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        return self.server.hub.users[words[-1]]

    def readable(self, repo: str) -> Repository:
        user, found = self.user(), self.server.hub.repositories.get(repo)
        if found is None or found.private and not (user and user.owns(repo)):
            raise Refusal(404 if user else 401, "RepoNotFound", "Repository not found")
        return found

    def writable(self, repo: str) -> Repository:
        found, user = self.readable(repo), self.user()
        self.may_write(user, repo)
        return found

    def may_write(self, user: User | None, repo: str) -> None:
        if user is None:
            raise Refusal(401, "", "Invalid username or password.")
        if user.role == "read" or not user.owns(repo):
            owner = repo.partition("/")[0]
            raise Refusal(403, "", f'You don\'t have the rights to create a model under the namespace "{owner}"')

    def commit_of(self, repo: str, revision: str) -> tuple[str, dict[str, Blob]]:
        repository = self.readable(repo)
        name = repository.find(revision)
        if name is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return name, repository.commits[name]

    # -------------------------------------------------------------------------------------------------------- pushing
    def whoami(self) -> None:
        user = self.user()
        if user is None:
            raise Refusal(401, "", "Invalid username or password.")
        token = {"accessToken": {"displayName": "test", "role": user.role}}
        self.json({"type": "user", "name": user.name, "orgs": [{"name": one} for one in user.organisations]}
                  | {"auth": {"type": "access_token", **token}})  # fmt: skip

    def create(self) -> None:
        user, asked, hub = self.user(), json.loads(self.content), self.server.hub
        if user is None:
            raise Refusal(401, "", "Invalid username or password.")
        repo = f"{asked.get('organization') or user.name}/{asked['name']}"
        self.may_write(user, repo)
        url = f"{hub.address}/{repo}"
        if repo in hub.repositories:
            self.json({"url": url, "error": "You already created this model repo"}, 409)
            return
        hub.repositories[repo] = Repository(asked.get("visibility") == "private" or asked.get("private") is True)
        hub.repositories[repo].commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n")})
        self.json({"url": url, "name": repo})

    def branch(self, repo: str, branch: str) -> None:
        repository = self.writable(repo)
        if branch in repository.branches:
            raise Refusal(409, "", "Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        self.json({})

    def validate(self) -> None:
        text = json.loads(self.content)["content"]
        front = re.match(r"---\n(.*?)\n---\n", text, flags=re.DOTALL)
        warnings = [] if front else [{"message": "empty or missing yaml metadata in repo card"}]
        errors = []
        values = yaml.safe_load(front[1]) if front else {}
        if values.get("license", "mit") not in LICENCES:
            errors.append(f'"license" must be one of {list(LICENCES)}')
        for name in ("tags", "datasets"):
            if not all(isinstance(one, str) for one in values.get(name, [])):
                errors.append(f'"{name}" must be a list of strings')
        listed = [{"message": error} for error in errors]
        self.json({"errors": listed, "warnings": warnings}, 400 if errors else 200)

    def preupload(self, repo: str, revision: str) -> None:
        self.writable(repo)
        _, files = self.commit_of(repo, revision)
        self.json({"files": [
            {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular"}
            | {"shouldIgnore": False, "oid": files[one["path"]].etag if one["path"] in files else None}
            for one in json.loads(self.content)["files"]
        ]})  # fmt: skip

    def batch(self, repo: str) -> None:
        self.writable(repo)
        hub, objects = self.server.hub, []
        for one in json.loads(self.content)["objects"]:
            upload = {"href": f"{hub.address}/upload/{repo}/{one['oid']}", "header": {}}
            objects.append(one if (repo, one["oid"]) in hub.objects else one | {"actions": {"upload": upload}})
        self.json({"transfer": "basic", "objects": objects})

    def upload(self, repo: str, oid: str) -> None:
        hub = self.server.hub
        with hub.lock:
            dropped = hub.uploads_left == 0
            if hub.uploads_left:
                hub.uploads_left -= 1
        if dropped:
            hub.log.append([self.command, self.path_only, 0])
            self.close_connection = True
            self.connection.close()
            return
        if hashlib.sha256(self.content).hexdigest() != oid:
            raise Refusal(400, "", "wrong checksum")
        hub.objects[repo, oid] = self.content
        self.answer(b"")

    def commit(self, repo: str, revision: str) -> None:
        repository, hub = self.writable(repo), self.server.hub
        if revision not in repository.branches:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = dict(repository.commits[repository.branches[revision]])
        for line in self.content.splitlines():
            operation = json.loads(line)
            value, path = operation["value"], operation["value"].get("path", "")
            if ".." in path.split("/") or path.startswith("/"):
                raise Refusal(400, "", f"Invalid file path: {path}")
            if operation["key"] == "file":
                files[path] = Blob(base64.b64decode(value["content"]))
            elif operation["key"] == "lfsFile":
                if (repo, value["oid"]) not in hub.objects:
                    raise Refusal(400, "", f"LFS pointer of {path} points to a file that was not uploaded")
                files[path] = Blob(hub.objects[repo, value["oid"]], large=True)
            elif operation["key"] == "deletedFile":
                del files[path]
        name = repository.commit(revision, files)
        self.json({"success": True, "commitOid": name, "commitUrl": f"{hub.address}/{repo}/commit/{name}"})

    # -------------------------------------------------------------------------------------------------------- pulling
    def info(self, repo: str, revision: str | None = None) -> None:
        name, files = self.commit_of(repo, revision or "main")
        private = self.server.hub.repositories[repo].private
        siblings = [{"rfilename": path} for path in sorted(files)]
        self.json({"_id": repo, "id": repo, "modelId": repo, "sha": name, "private": private, "tags": []}
                  | {"downloads": 0, "likes": 0, "siblings": siblings})  # fmt: skip

    def tree(self, repo: str, revision: str, folder: str | None = None) -> None:
        name, files = self.commit_of(repo, revision)
        below = {path: blob for path, blob in files.items() if not folder or path.startswith(f"{folder}/")}
        if not below:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        rows = []
        for path, blob in sorted(below.items()):
            lfs = {"lfs": {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 134}} if blob.large else {}
            rows.append({"type": "file", "path": path, "size": len(blob.content), "oid": blob.git_id, **lfs})
        self.answer(json.dumps(rows).encode(), 200, {"X-Repo-Commit": name})

    def refs(self, repo: str) -> None:
        branches = self.readable(repo).branches
        listed = [{"name": one, "ref": f"refs/heads/{one}", "targetCommit": name} for one, name in branches.items()]
        self.json({"branches": listed, "tags": [], "converts": []})

    def resolve(self, repo: str, revision: str, path: str) -> None:
        name, files = self.commit_of(repo, revision)
        if path not in files:
            raise Refusal(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": name})
        blob = files[path]
        headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": name, "Accept-Ranges": "bytes"}
        if not blob.large:
            self.part(blob.content, headers)
            return
        linked = {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content))}
        where = {"Location": f"{self.server.hub.storage}/objects/{repo}/{blob.sha256}"}
        self.answer(b"", 302, headers | linked | where)

    def stored(self, repo: str, oid: str) -> None:
        self.part(self.server.hub.objects[repo, oid], {"ETag": f'"{oid}"'})

    def part(self, content: bytes, headers: dict[str, str]) -> None:
        """All of the content, or the bytes from that of the Range header on."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            self.answer(content, 200, headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        if first >= len(content):
            raise Refusal(416, "", "range", {"Content-Range": f"bytes */{len(content)}"})
        headers |= {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        self.answer(content[first : last + 1], 206, headers)

    # --------------------------------------------------------------------------------------------------------- testing
    def drop(self) -> None:
        self.server.hub.uploads_left = json.loads(self.content)["after"]
        self.json({})

    def show_log(self) -> None:
        log, self.server.hub.log = self.server.hub.log, []
        self.json(log)


ROUTES = [
    ("POST", "/test/drop", Handler.drop),
    ("GET", "/test/log", Handler.show_log),
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", f"/api/models/{REPOSITORY}/branch/(?P<branch>.+)", Handler.branch),
    ("POST", f"/api/models/{REPOSITORY}/preupload/(?P<revision>.+)", Handler.preupload),
    ("POST", f"/api/models/{REPOSITORY}/commit/(?P<revision>.+)", Handler.commit),
    ("POST", rf"/{REPOSITORY}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", f"/upload/{REPOSITORY}/(?P<oid>[0-9a-f]+)", Handler.upload),
    ("GET HEAD", f"/api/models/{REPOSITORY}", Handler.info),
    ("GET", f"/api/models/{REPOSITORY}/revision/(?P<revision>[^/]+)", Handler.info),
    ("GET", f"/api/models/{REPOSITORY}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?", Handler.tree),
    ("GET", f"/api/models/{REPOSITORY}/refs", Handler.refs),
    ("GET HEAD", f"/{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
    ("GET HEAD", f"/objects/{REPOSITORY}/(?P<oid>[0-9a-f]+)", Handler.stored),
]


class HubServer:
    """The server and all that it holds; runs between `with` and the end of the block.

    Args:
        users: whose each token is.
    """

    def __init__(self, users: dict[str, User]) -> None:
        self.users = users
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[tuple[str, str], bytes] = {}  # by repository and checksum
        self.log: list[list[Any]] = []
        self.uploads_left: int | None = None
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.hub = self
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.storage = f"http://localhost:{self.server.server_address[1]}"  # large files come from another host

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Any, token: str | None = None) -> dict[str, str]:
        """The variables under which a program's Hub is this one; caches and log-ins are below `home`."""
        variables = {"HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        variables |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return variables | ({} if token is None else {"HF_TOKEN": token})

    def files(self, repo: str, revision: str = "main") -> dict[str, Blob]:
        repository = self.repositories[repo]
        return repository.commits[repository.find(revision)]
