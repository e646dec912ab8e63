"""The records in a bucket: the precondition that the real service checks, on loopback."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest

# Two launchers read, both claim, the winner beats and finishes, a third reads.
LAUNCHERS = """
from launch.lease import Ledger, Owner, Watch, claim, may_start, this_process
ledger = Ledger("gs://bucket/sweeps/")
(seen,) = ledger.read(["runs/a/launch/train"])
assert seen.record is None
watch = Watch(this_process(), 60)
other = Watch(Owner("elsewhere", "x", 1, "1"), 60)
lease = claim(ledger, "runs/a/launch/train", "d", seen, watch)
assert lease is not None
assert claim(ledger, "runs/a/launch/train", "d", seen, other) is None
assert lease.beat() and lease.finish(None)
(now,) = ledger.read(["runs/a/launch/train"])
assert now.record.state == "done" and now.record.beat == 1
assert not may_start("runs/a/launch/train", "d", now, watch, 3)
"""

# A launcher that is soon out of patience.
IMPATIENT = """
from launch import lease
lease._PATIENCE_SECS = 2
lease._RETRIES = lease._RETRIES | {"max_retries": 1}
try:
    lease.Ledger("gs://bucket/sweeps/").read(["runs/a/launch/train"])
except ConnectionError as error:
    print(error)
"""


class Bucket(http.server.BaseHTTPRequestHandler):
    """Objects with generations, as storage.googleapis.com has them."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, tuple[int, bytes]]
    refused: list[str]

    def log_message(self, *_):
        pass

    def do_GET(self):
        name = urllib.parse.unquote(
            urllib.parse.urlparse(self.path).path.split("/o/")[1]
        )
        generation, content = self.objects.get(name, (0, b""))
        self.answer(200 if generation else 404, content, generation)

    def do_POST(self):
        query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
        name = query["name"][0]
        content = self.rfile.read(int(self.headers["Content-Length"]))
        there = self.objects.get(name, (0, b""))[0]
        wanted = query.get("ifGenerationMatch")
        if wanted and int(wanted[0]) != there:
            self.refused.append(name)
            return self.answer(412, b"{}")
        self.objects[name] = there + 1, content
        body = json.dumps({"name": name, "generation": str(there + 1)}).encode()
        return self.answer(200, body)

    def answer(self, status, body, generation=0):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if generation:
            self.send_header("X-Goog-Generation", str(generation))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def bucket():
    handler = type("Handler", (Bucket,), {"objects": {}, "refused": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_of_two_launchers_one_wins_in_a_bucket_too(bucket):
    run_beside(bucket.server_address[1], LAUNCHERS)
    handler = bucket.RequestHandlerClass
    key = "sweeps/runs/a/launch/train.json"
    assert list(handler.objects) == [key]
    assert handler.refused == [key]
    assert json.loads(handler.objects[key][1])["state"] == "done"


def test_a_bucket_that_does_not_answer_is_named_and_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = run_beside(silent.getsockname()[1], IMPATIENT)
    assert "gs://bucket/sweeps/ cannot be reached: no answer in 2 s" in said


def test_a_bucket_that_refuses_is_named_with_the_reason():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    said = run_beside(port, IMPATIENT)
    assert "gs://bucket/sweeps/ cannot be reached: " in said
    assert "Could not connect" in said


def run_beside(port, code):
    """Runs a program whose bucket is on that port; returns what it prints."""
    settings = {
        "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{port}",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
