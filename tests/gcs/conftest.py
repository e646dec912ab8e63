"""A bucket on loopback for a session, well-behaved or not, and the programs beside it."""

import importlib.util
import json
import subprocess
import sys
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests.programs.conftest import copied, finished, programs

__all__ = ["copied", "finished", "programs"]  # fixtures

ROOT = Path(__file__).parents[2]
NAME = "copymit-test"


class Bucket(NamedTuple):
    """A bucket that is served on loopback.

    Attributes:
      port: of the server.
    """

    port: int
    root: str = f"gs://{NAME}"

    @property
    def environment(self) -> dict[str, str]:
        """What makes every client library use it."""
        address = f"http://127.0.0.1:{self.port}"
        return {
            "TENSORSTORE_GCS_HTTP_URL": address,
            "STORAGE_EMULATOR_HOST": address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "FSSPEC_GCS": json.dumps({"token": "anon"}),
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,  # ArrayRecord's client
            "NO_GCE_CHECK": "true",
            "EPATH_USE_TF": "false",
        }

    def faults(self) -> dict[str, int]:
        """Counts the requests that failed and that were late."""
        return json.loads(self._ask("/faults"))

    def read(self, path: str) -> bytes:
        """Reads an object, past the faults."""
        name = urllib.parse.quote(path.removeprefix(f"{self.root}/"), safe="")
        return self._ask(f"/storage/v1/b/{NAME}/o/{name}?alt=media")

    def list(self, folder: str) -> list[str]:
        """Lists the objects below a folder, past the faults."""
        prefix = urllib.parse.quote(folder.removeprefix(f"{self.root}/") + "/", safe="")
        answer = json.loads(self._ask(f"/storage/v1/b/{NAME}/o?prefix={prefix}"))
        return [f"{self.root}/{item['name']}" for item in answer.get("items", [])]

    def _ask(self, path: str) -> bytes:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", headers={"X-No-Faults": "yes"}
        )
        with urllib.request.urlopen(request) as answer:
            return answer.read()


@contextmanager
def serve_bucket(*flags):
    for module in ("gcp_storage_emulator", "gcsfs"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"no {module}: pip install -e '.[test]' brings a test's bucket")
    server = subprocess.Popen(
        [
            sys.executable,
            str(Path(__file__).with_name("faulty_server.py")),
            NAME,
            *flags,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        yield Bucket(int(server.stdout.readline()))
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def bucket():
    with serve_bucket() as served:
        yield served


@pytest.fixture(scope="session")
def faulty_bucket():
    """A bucket of which every 101st request fails and every 53rd answer is late.

    Each program meets some of both. A failure costs a second, before it is tried again.
    """
    with serve_bucket(
        "--fail_every=101", "--delay_every=53", "--delay_secs=0.3"
    ) as served:
        yield served


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of images with a text beside each, enough for the tiny config."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(24):
        pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"noise number {i}")
    return folder


@pytest.fixture(scope="session")
def prepared(programs, faulty_bucket, images):
    """These images as a data set in the faulty bucket."""
    output = f"{faulty_bucket.root}/prepared"
    words = ("-m", "copymit.data.prepare", "folder", images, f"--output={output}")
    programs.run(*words, **faulty_bucket.environment)
    return output
