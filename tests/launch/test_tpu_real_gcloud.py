"""The real gcloud, where there is one, takes every call up to the question who is asking.

It is started without any account, so that it only reads the command line, and ends.
"""

import os
import shutil
import subprocess

import pytest

from launch import gcloud
from launch.slices import Slice

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("gcloud"), reason="gcloud is not installed here"
    ),
]
ONE = Slice("my-run", "us-west4-a", "v5litepod-16")
SPOT = Slice(
    "my-run",
    "us-west4-a",
    "v5litepod-16",
    count=2,
    project="my-project",
    capacity="spot",
    network="n",
    subnetwork="s",
    internal_ips=True,
    service_account="a@b.iam.gserviceaccount.com",
    valid_until="6h",
    labels=(("team", "vision"),),
)
NAMED = Slice("r1", "us-west4-a", "v6e-8", capacity="reserved", reservation="mine")
RESERVED = Slice("r1", "us-west4-a", "v6e-8", capacity="reserved")


@pytest.fixture
def parse(tmp_path):
    def run(words):
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "CLOUDSDK_CONFIG": str(tmp_path),
                "CLOUDSDK_CORE_PROJECT": "my-project",
                "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
                "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
                "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1",
                "NO_GCE_CHECK": "true",
            },
        )

    return run


@pytest.mark.parametrize(
    "call",
    [
        gcloud.describe_request(ONE),
        gcloud.describe_node(ONE, "my-run"),
        gcloud.create_request(ONE),
        gcloud.create_request(SPOT),
        gcloud.create_request(RESERVED),
        gcloud.create_request(NAMED),
        gcloud.delete_request(ONE),
        gcloud.ssh(SPOT, "mkdir -p x"),
        gcloud.scp(SPOT, ["a", "b"], "x"),
        gcloud.list_objects(ONE, "bucket"),
    ],
    ids=lambda call: " ".join(call[3:6]),
)
def test_gcloud_knows_every_word_of_the_call(call, parse):
    done = parse(call)
    if "alpha" in call and "not found" in done.stderr + done.stdout:
        pytest.skip("the alpha commands are not installed here")
    assert gcloud.kind_of(done.stderr) == "signed-out", done.stderr
    assert done.returncode == 1


def test_gcloud_refuses_a_word_that_it_does_not_know(parse):
    done = parse([*gcloud.create_request(ONE), "--no-such-flag"])
    assert done.returncode == 2
    assert "unrecognized arguments" in done.stderr
