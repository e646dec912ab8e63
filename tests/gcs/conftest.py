"""A bucket on loopback for a session, well-behaved or not, and the programs beside it."""

import importlib.util
import json
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.programs.conftest import cache, programs

__all__ = ["cache", "programs"]  # fixtures

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
            "NO_GCE_CHECK": "true",
            "EPATH_USE_TF": "false",
        }

    def faults(self) -> dict[str, int]:
        """Counts the requests that failed and that were late."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/faults") as answer:
            return json.load(answer)


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
    """A bucket of which every 11th request fails and every 13th answer is late."""
    with serve_bucket(
        "--fail_every=11", "--delay_every=13", "--delay_secs=0.3"
    ) as served:
        yield served


@pytest.fixture(scope="session")
def on_disk(programs, tmp_path_factory):
    """The run that those in buckets are compared with."""
    workdir = tmp_path_factory.mktemp("runs") / "disk"
    programs.run("train.py", *programs.flags, f"--workdir={workdir}")
    programs.run("evaluate.py", f"--workdir={workdir}")
    return workdir
