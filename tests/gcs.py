"""A Google Cloud Storage of one process, for tests: what gcsfs and TensorStore ask of the JSON API.

Objects live in a dict; there is no access control except `refuse`, which answers every request with a status.
"""

import contextlib
import itertools
import json
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

_TIME = "2026-01-01T00:00:00.000Z"


class Bucket:
  """One bucket, "runs": name → (content, generation)."""

  def __init__(self):
    self.objects: dict[str, tuple[bytes, int]] = {}
    self.refuse = 0  # an HTTP status, such as 403
    self.lock = threading.RLock()
    self.generations = itertools.count(1)
    self.uploads: dict[str, tuple[str, bytearray]] = {}

  def names(self, prefix: str = "") -> list[str]:
    """Sorted names that begin with `prefix`."""
    with self.lock:
      return sorted(name for name in self.objects if name.startswith(prefix))

  def put(self, name: str, content: bytes) -> dict:
    with self.lock:
      self.objects[name] = (bytes(content), next(self.generations))
      return self.describe(name)

  def describe(self, name: str) -> dict:
    content, generation = self.objects[name]
    return {
      "kind": "storage#object", "name": name, "bucket": "runs", "size": str(len(content)),
      "generation": str(generation), "metageneration": "1", "updated": _TIME, "timeCreated": _TIME,
    }  # fmt: skip


@contextlib.contextmanager
def serve() -> Iterator[tuple[Bucket, dict[str, str]]]:
  """A running server's bucket, and the environment that sends a process to it instead of to Google."""
  bucket = Bucket()
  server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"bucket": bucket}))
  server.daemon_threads = True
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  address = f"http://127.0.0.1:{server.server_port}"
  try:
    yield (
      bucket,
      {
        "STORAGE_EMULATOR_HOST": address,  # gcsfs and google-cloud-storage
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks over gRPC what kind of bucket it is
        "GOOGLE_CLOUD_PROJECT": "none",
        "NO_GCE_CHECK": "true",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
        "PATH": os.environ["PATH"],
      },
    )
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


class _Handler(BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  bucket: Bucket

  def log_message(self, *_) -> None:
    """Quiet."""

  def handle_any(self) -> None:
    url = urlsplit(self.path)
    query = {key: values[0] for key, values in parse_qs(url.query).items()}
    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
    if self.bucket.refuse:
      return self.answer(self.bucket.refuse, {"error": {"code": self.bucket.refuse, "message": "refused"}})
    path = unquote(url.path)
    with self.bucket.lock:
      if match := re.fullmatch(r"(?:/download|/upload)?/storage/v1/b/([^/]+)(?:/o(?:/(.*))?)?", path):
        if match[1] != "runs":
          return self.answer(404, {"error": {"code": 404, "message": "no such bucket"}})
        if path.startswith("/upload"):
          return self.upload(query, body)
        if match[2]:
          return self.one(match[2], query)
        return self.answer(200, {"name": "runs"}) if not path.endswith("/o") else self.listing(query)
    return self.answer(404, {"error": {"code": 404, "message": "not served"}})

  do_GET = do_POST = do_PUT = do_DELETE = handle_any

  def one(self, name: str, query: dict[str, str]) -> None:
    objects = self.bucket.objects
    if match := re.fullmatch(r"(.*)/(?:rewriteTo|copyTo|moveTo)/(?:b/[^/]+/)?o/(.*)", name):
      source, target = match.groups()
      if source not in objects:
        return self.missing()
      made = self.bucket.put(target, objects[source][0])
      if "/moveTo/" in name:
        del objects[source]
        return self.answer(200, made)
      return self.answer(200, {"done": True, "resource": made})
    if name not in objects:
      return self.missing()
    content, generation = objects[name]
    if query.get("ifGenerationNotMatch") == str(generation):
      return self.answer(304, None)
    if query.get("ifGenerationMatch", str(generation)) != str(generation):
      return self.answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
    if self.command == "DELETE":
      del objects[name]
      return self.answer(204, None)
    if query.get("alt") != "media":
      return self.answer(200, self.bucket.describe(name))
    headers = {"x-goog-generation": str(generation)}
    if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or ""):
      first = int(match[1]) if match[1] else len(content) - int(match[2])
      last = int(match[2]) if match[1] and match[2] else len(content) - 1
      part = content[first : last + 1]
      headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
      return self.answer(206 if part else 416, part, headers)
    return self.answer(200, content, headers)

  def listing(self, query: dict[str, str]) -> None:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    items, prefixes = [], {}
    for name in self.bucket.names(prefix):
      if name < query.get("startOffset", "") or ("endOffset" in query and name >= query["endOffset"]):
        continue
      rest = name[len(prefix) :]
      if delimiter and delimiter in rest:
        prefixes[prefix + rest.split(delimiter)[0] + delimiter] = None
      else:
        items.append(self.bucket.describe(name))
    return self.answer(200, {"kind": "storage#objects", "items": items, "prefixes": list(prefixes)})

  def upload(self, query: dict[str, str], body: bytes) -> None:
    if "upload_id" in query:  # a chunk of a resumable upload
      name, received = self.bucket.uploads[query["upload_id"]]
      received += body
      total = self.headers.get("Content-Range", "/*").split("/")[1]
      if total == "*" or len(received) < int(total):
        return self.answer(308, None, {"Range": f"bytes=0-{len(received) - 1}"})
      return self.answer(200, self.bucket.put(name, received))
    name, content = query.get("name"), body
    if query.get("uploadType") == "multipart":
      boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
      head, rest = body.split(b"--" + boundary, 2)[1:]
      name = json.loads(re.split(rb"\r?\n\r?\n", head, maxsplit=1)[1])["name"]
      content = re.split(rb"\r?\n\r?\n", rest, maxsplit=1)[1]
      content = re.sub(rb"\r?\n--" + re.escape(boundary) + rb"--\s*$", b"", content)
    if query.get("uploadType") == "resumable":
      name = name or json.loads(body)["name"]
      key = str(next(self.bucket.generations))
      self.bucket.uploads[key] = (name, bytearray())
      place = f"http://{self.headers['Host']}/upload/storage/v1/b/runs/o?upload_id={key}"
      return self.answer(200, None, {"Location": place})
    wanted = query.get("ifGenerationMatch")
    if wanted is not None and wanted != str(self.bucket.objects.get(name, (b"", 0))[1]):
      return self.answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
    return self.answer(200, self.bucket.put(name, content))

  def missing(self) -> None:
    return self.answer(404, {"error": {"code": 404, "message": "No such object"}})

  def answer(self, status: int, body: dict | bytes | None, headers: dict[str, str] | None = None) -> None:
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    self.send_response(status)
    for key, value in (headers or {}).items():
      self.send_header(key, value)
    self.send_header(
      "Content-Type", "application/octet-stream" if isinstance(body, bytes) else "application/json"
    )
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    with contextlib.suppress(BrokenPipeError):
      self.wfile.write(content)
