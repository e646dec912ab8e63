"""Of several pools one runs a task, on a disk and in a bucket; silence loses it."""

import http.server
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest

from launch.claims import Claims, Record, Watch, reaching

KEY = "a/task"


@pytest.fixture
def claims(tmp_path):
    return Claims(tmp_path)


@pytest.fixture
def clock():
    """The seconds that a watch counts, moved by hand."""
    return [1000.0]


@pytest.fixture
def watch(clock):
    return Watch(60, lambda: clock[0])


def look(claims):
    return claims.read([KEY])[KEY]


def take(claims):
    return claims.claim(KEY, look(claims))


def test_of_two_who_saw_the_same_record_one_wins(claims, tmp_path):
    seen = look(claims)
    assert seen.record is None
    first = claims.claim(KEY, seen)
    assert first is not None
    assert Claims(tmp_path).claim(KEY, seen) is None
    assert claims.claim(KEY, seen) is None  # nor the same pool, with an old record
    assert look(claims).record == first.record
    assert first.record.state == "running"
    assert f" {os.getpid()} " in first.record.owner


def _race(root, results):
    claims, won = Claims(root), 0
    for number in range(20):
        version = claims.read([f"t{number}"])[f"t{number}"]
        won += (
            version.record is None and claims.claim(f"t{number}", version) is not None
        )
    results.put(won)


def test_processes_that_race_share_the_tasks(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    racers = [context.Process(target=_race, args=(tmp_path, results)) for _ in range(3)]
    for racer in racers:
        racer.start()
    won = [results.get(timeout=300) for _ in racers]
    for racer in racers:
        racer.join()
    assert sum(won) == 20


def test_every_start_counts_and_one_given_back_does_not(claims):
    assert take(claims).update(state="failed", error="no disk")
    assert take(claims).update(state="failed", error="no disk")
    there = look(claims).record
    assert (there.attempts, there.error) == (2, "no disk")
    third = take(claims)
    assert third.record.attempts == 3
    assert third.update(state="pending", attempts=third.record.attempts - 1)
    assert look(claims).record.attempts == 2


def test_a_pool_that_shows_life_keeps_its_task(claims, clock, watch):
    claim = take(claims)
    for _ in range(20):
        assert not watch.is_abandoned(KEY, look(claims))
        clock[0] += 14
        assert claim.update()


def test_a_silent_pool_loses_its_task_and_learns_of_it(claims, clock, watch, tmp_path):
    lost = take(claims)
    for _ in range(5):
        assert not watch.is_abandoned(KEY, look(claims))
        clock[0] += 14
    assert watch.is_abandoned(KEY, look(claims))
    ours = Claims(tmp_path).claim(KEY, look(claims))
    assert ours.record.attempts == 2
    assert not lost.update()
    assert not lost.update(state="done")
    assert ours.update()
    assert look(claims).record.state == "running"


def test_who_could_not_look_does_not_take_silence_for_death(claims, clock, watch):
    take(claims)
    assert not watch.is_abandoned(KEY, look(claims))
    clock[0] += 3600  # the bucket was away, for the owner as well
    assert not watch.is_abandoned(KEY, look(claims))


def test_a_sign_of_life_that_arrived_after_it_was_given_up_costs_nothing(claims):
    claim, there = take(claims), look(claims)
    late = there.record._replace(seen=there.record.seen + 1)
    assert claims.swap(KEY, late, there.generation)
    assert claim.update(state="done")
    assert look(claims).record.state == "done"


def test_a_damaged_record_is_named_with_the_way_out(claims, tmp_path):
    (tmp_path / "a").mkdir()
    for text in ("{", '{"state": "done", "digest": "of an older copymit"}'):
        (tmp_path / "a/task.json").write_text(text)
        with pytest.raises(ValueError, match=r"a/task\.json is not .* delete it"):
            look(claims)


def test_records_are_for_people_too(claims, tmp_path):
    take(claims)
    assert json.loads((tmp_path / "a/task.json").read_text())["state"] == "running"
    assert Record(**json.loads((tmp_path / "a/task.json").read_text())).attempts == 1


@pytest.mark.parametrize(
    ("root", "raised", "told"),
    [
        ("gs://bucket/sweeps", OSError("503"), ConnectionError),
        ("gs://bucket/sweeps", KeyError("seed"), KeyError),
        ("gs://bucket/sweeps", ValueError("damaged"), ValueError),
        ("/disk/sweeps", PermissionError("no"), PermissionError),
    ],
)
def test_only_a_bucket_is_said_to_be_out_of_reach_and_no_fault_is(root, raised, told):
    with pytest.raises(told), reaching(root):
        raise raised


# Two pools read, both claim, the winner beats and finishes, a third reads.
POOLS = """
from launch.claims import Claims
key = "runs/a/launch/train"
claims = Claims("gs://bucket/sweeps/")
seen = claims.read([key])[key]
assert seen.record is None
claim = claims.claim(key, seen)
assert claim is not None
assert Claims("gs://bucket/sweeps").claim(key, seen) is None
assert claim.update() and claim.update(state="done")
assert claims.read([key])[key].record.state == "done"
"""

# A pool that is soon out of patience.
IMPATIENT = """
from launch import claims
claims._PATIENCE_SECS = 2
claims._RETRIES = claims._RETRIES | {"max_retries": 1}
try:
    claims.Claims("gs://bucket/sweeps/").read(["runs/a/launch/train"])
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


def test_of_two_pools_one_wins_in_a_bucket_too(bucket):
    run_beside(bucket.server_address[1], POOLS)
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
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
