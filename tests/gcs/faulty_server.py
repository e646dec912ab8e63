"""gcp-storage-emulator with what the programs need beyond it, and with faults on demand.

    python tests/gcs/faulty_server.py BUCKET [--fail_every=N] [--delay_every=N]

The emulator knows no preconditions, sends no generations with the content, lists without
offsets and cannot move; the real service does all of that, and tensorstore and gcsfs
build on it. Every N-th request meets one of `FAULTS`, in turn, and every N-th answer is
late; but not those to the tests themselves, which send `X-No-Faults`. Prints the port, and
ends when its input does: a test that is killed leaves no server behind.
"""

import argparse
import functools
import http.server
import io
import itertools
import json
import os
import re
import socket
import sys
import threading
import time
import urllib.parse
from typing import ClassVar

from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

_OBJECT = re.compile(r"(?:/download)?(?:/storage/v1)?/b/([^/]+)/o/([^/]+)")
_UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")
_MOVE = re.compile(r"(/storage/v1/b/([^/]+)/o/[^/]+)/moveTo/o/([^/]+)")
_LIST = re.compile(r"/storage/v1/b/([^/]+)/o")
# A refusal by its status; `lost`: done, but refused; `reset`, `dropped`: the connection
# ends before or after it was done; `cut`: it ends in the middle of the answer.
FAULTS = ("503", "lost", "reset", "429", "cut", "500", "dropped")
_LOCK = threading.Lock()  # the emulator serves one request after the other


class Bucket(RequestHandler):
    """One request.

    Args:
      fail_every, delay_every: requests between two faults; 0 = none.
      delay_secs: that a late answer takes longer.
    """

    protocol_version = "HTTP/1.1"
    counter = itertools.count(1)
    failed = delayed = 0
    finished: ClassVar[dict] = {}  # uploads, by their sessions

    def __init__(self, fail_every, delay_every, delay_secs, storage, *args):
        self.fail_every, self.delay_every = fail_every, delay_every
        self.delay_secs = delay_secs
        self.generation = None
        super().__init__(storage, *args)

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.serve(super().do_GET)

    def do_POST(self):
        self.serve(super().do_POST)

    def do_PUT(self):
        self.serve(super().do_PUT)

    def do_DELETE(self):
        self.serve(super().do_DELETE)

    def do_PATCH(self):
        self.serve(super().do_PATCH)

    def serve(self, emulate):
        self.generation = None
        if self.path == "/faults":
            counts = {"failed": Bucket.failed, "delayed": Bucket.delayed}
            return self.reply(200, json.dumps(counts).encode())
        if "X-No-Faults" in self.headers:
            with _LOCK:
                return self.answer(emulate)
        number = next(self.counter)
        if self.delay_every and number % self.delay_every == 0:
            Bucket.delayed += 1
            time.sleep(self.delay_secs)
        if self.fail_every and number % self.fail_every == 0:
            Bucket.failed += 1
            fault = FAULTS[number // self.fail_every % len(FAULTS)]
            return self.fail(fault, emulate)
        with _LOCK:
            return self.answer(emulate)

    def fail(self, fault, emulate):
        """Refuses a request, or lets it happen and loses the answer."""
        said = b""
        if fault in ("lost", "dropped", "cut"):
            wire, self.wfile = self.wfile, io.BytesIO()
            with _LOCK:
                self.answer(emulate)
            said, self.wfile = self.wfile.getvalue(), wire
        else:
            self.drain()
        if fault.isdigit() or fault == "lost":
            return self.reply(503 if fault == "lost" else int(fault))
        if fault == "cut":
            self.wfile.write(
                said[: len(said) - 1 - len(said.split(b"\r\n\r\n")[1]) // 2]
            )
        self.close_connection = True
        return self.connection.shutdown(socket.SHUT_RDWR)

    def answer(self, emulate):
        """Does what the real service would."""
        parts = urllib.parse.urlsplit(self.path)
        query = {k: v[0] for k, v in urllib.parse.parse_qs(parts.query).items()}
        if self.command == "POST" and (move := _MOVE.fullmatch(parts.path)):
            return self.move(*move.groups())
        if self.command == "GET" and (listing := _LIST.fullmatch(parts.path)):
            return self.list(listing[1], query, emulate)
        named = _OBJECT.fullmatch(parts.path)
        uploaded = _UPLOAD.fullmatch(parts.path)
        session = query.get("upload_id")
        if session in self.finished:  # asked again, because the answer was lost
            self.drain()
            obj = self.storage.get_file_obj(*self.finished[session])
            return self.reply(200, json.dumps(obj).encode())
        if named or (uploaded and "name" in query):
            bucket = (named or uploaded)[1]
            name = urllib.parse.unquote(named[2]) if named else query["name"]
            there = self.generation_of(bucket, name)
            wanted = query.get("ifGenerationMatch", there)
            unwanted = query.get("ifGenerationNotMatch")
            if wanted != there or unwanted == there:
                self.drain()
                reading = self.command == "GET" and unwanted == there != "0"
                return self.reply(304 if reading else 412)
            if self.command == "GET" and there != "0":
                self.generation = there
        emulate()
        if session and self.status == 200:
            self.finished[session] = bucket, name
        return None

    def send_response(self, code, message=None):
        self.status = code
        super().send_response(code, message)

    def generation_of(self, bucket, name):
        try:
            return self.storage.get_file_obj(bucket, name)["generation"]
        except Exception:  # the emulator's NotFound, of an object or a bucket
            return "0"

    def move(self, source, bucket, target):
        self.drain()
        copied = self.ask("POST", f"{source}/copyTo/b/{bucket}/o/{target}")
        if copied != 200:
            return self.reply(copied)
        self.ask("DELETE", source)
        obj = self.storage.get_file_obj(bucket, urllib.parse.unquote(target))
        return self.reply(200, json.dumps(obj).encode())

    def ask(self, method, path):
        """Lets the emulator do something else; returns the status."""
        answer, self.wfile, status = self.wfile, _Nowhere(), []
        self.path, self.command = path, method
        send, self.send_response = (
            self.send_response,
            lambda code, *_: status.append(code),
        )
        headers, self.headers = self.headers, {}
        try:
            getattr(super(), f"do_{method}")()
        finally:
            self.wfile, self.send_response, self.headers = answer, send, headers
            self._headers_buffer = []
        return status[0]

    def list(self, bucket, query, emulate):
        start, end = query.get("startOffset", ""), query.get("endOffset", "")
        if not (start or end) or "delimiter" in query:
            return emulate()
        files, _ = self.storage.get_file_list(bucket, query.get("prefix"), None)
        inside = [
            file
            for file in files
            if file["name"] >= start and (not end or file["name"] < end)
        ]
        body = json.dumps({"kind": "storage#objects", "items": inside})
        return self.reply(200, body.encode())

    def drain(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def reply(self, status, body=b""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self):
        if self.generation:
            self.send_header("X-Goog-Generation", self.generation)
        super().end_headers()


class _Nowhere:
    def write(self, data):
        return len(data)

    def flush(self):
        pass


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bucket")
    parser.add_argument("--fail_every", type=int, default=0)
    parser.add_argument("--delay_every", type=int, default=0)
    parser.add_argument("--delay_secs", type=float, default=0.5)
    options = parser.parse_args()
    storage = Storage(use_memory_fs=True)
    create_bucket(options.bucket, storage)
    handler = functools.partial(
        Bucket, options.fail_every, options.delay_every, options.delay_secs, storage
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(
        target=lambda: os._exit(len(sys.stdin.read())), daemon=True
    ).start()
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
