"""The manifest is what Kubernetes and JobSet take, and restarts what deserves it.

Fields, and the order in which rules are tried, are those of JobSet 0.10:
https://github.com/kubernetes-sigs/jobset, config/components/crd/bases and
pkg/controllers/failure_policy.go; messages are those of Kubernetes,
pkg/controller/job/pod_failure_policy.go.
"""

import copy
import math
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MANIFEST = yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())
SPEC = MANIFEST["spec"]
(REPLICATED,) = SPEC["replicatedJobs"]
JOB = REPLICATED["template"]["spec"]
POD = JOB["template"]["spec"]
(CONTAINER,) = POD["containers"]


@pytest.mark.parametrize("kubernetes", ["1.31", "1.37"])
def test_kubernetes_takes_the_job_inside_the_manifest(kubernetes):
    validator = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    )
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": MANIFEST["metadata"]}
    job["spec"] = copy.deepcopy(JOB)
    validator.validate(job, kubernetes, strict=True)
    job["spec"]["backofLimit"] = 0
    with pytest.raises(validator.ValidationError, match="'backofLimit' was unexpected"):
        validator.validate(job, kubernetes, strict=True)


def test_jobset_knows_every_field_around_the_job():
    rule = {"name", "action", "onJobFailureReasons", "onJobFailureMessagePatterns"}
    assert (MANIFEST["apiVersion"], MANIFEST["kind"]) == (
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
    )
    assert SPEC.keys() == {"failurePolicy", "network", "replicatedJobs"}
    assert SPEC["failurePolicy"].keys() == {"maxRestarts", "rules"}
    assert all(found.keys() <= rule for found in SPEC["failurePolicy"]["rules"])
    assert SPEC["network"] == {"enableDNSHostnames": True}
    assert REPLICATED.keys() == {"name", "replicas", "template"}


def reason_of(code, conditions):
    """Why the Job fails when one of its Pods does, and how Kubernetes words it."""
    for index, rule in enumerate(JOB["podFailurePolicy"]["rules"]):
        assert rule["action"] == "FailJob"
        end = f"matching FailJob rule at index {index}"
        for wanted in rule.get("onPodConditions", ()):
            if wanted["type"] in conditions:
                text = f"Pod default/x has condition {wanted['type']} {end}"
                return "PodFailurePolicy", text
        if code in rule.get("onExitCodes", {}).get("values", ()):
            text = f"Container copymit for pod default/x failed with exit code {code} {end}"
            return "PodFailurePolicy", text
    assert JOB["backoffLimit"] == 0
    return "BackoffLimitExceeded", "Job has reached the specified backoff limit"


def action_on(*failures):
    """What JobSet does when Jobs fail, each for a (reason, message)."""
    for rule in SPEC["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        for reason, message in failures:
            said = any(re.search(pattern, message) for pattern in patterns)
            if reason in rule["onJobFailureReasons"] and said:
                return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize(
    ("code", "conditions", "action"),
    [
        (1, (), "FailJobSet"),  # sys.exit("error: ..."), an unknown flag
        (2, (), "FailJobSet"),  # no such file to run
        (143, (), "RestartJobSetAndIgnoreMaxRestarts"),  # stopped, checkpoint saved
        (1, ("DisruptionTarget",), "RestartJobSetAndIgnoreMaxRestarts"),
        (137, ("DisruptionTarget",), "RestartJobSetAndIgnoreMaxRestarts"),
        (75, (), "RestartJobSet"),  # it hung
        (134, (), "RestartJobSet"),  # jax misses another host
        (137, (), "RestartJobSet"),
        (139, (), "RestartJobSet"),
    ],
)
def test_a_typo_ends_the_run_a_crash_counts_and_a_lost_node_does_not(
    code, conditions, action
):
    assert action_on(reason_of(code, conditions)) == action
    assert 0 < SPEC["failurePolicy"]["maxRestarts"] <= 5


def test_a_lost_slice_decides_whatever_the_others_say_then():
    lost, others = reason_of(137, ("DisruptionTarget",)), reason_of(1, ())
    assert action_on(others, lost) == "RestartJobSetAndIgnoreMaxRestarts"


def test_a_run_past_its_deadline_ends():
    assert JOB["activeDeadlineSeconds"] > 0
    late = ("DeadlineExceeded", "Job was active longer than specified deadline")
    assert action_on(late) == "FailJobSet"


def test_there_is_one_pod_for_each_host_with_all_of_its_chips():
    topology = POD["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(int(side) for side in topology.split("x"))
    resources = CONTAINER["resources"]
    assert resources["limits"] == resources["requests"]
    assert JOB["parallelism"] == JOB["completions"]
    assert JOB["completions"] * resources["limits"]["google.com/tpu"] == chips
    assert JOB["completionMode"] == "Indexed"


def test_sigterm_reaches_the_program_and_leaves_time_for_a_checkpoint(flags_of):
    python, program, *flags = CONTAINER["command"]
    assert (python, program) == ("python", "train.py")
    assert {flag[2:].partition("=")[0] for flag in flags} == {
        "config",
        "workdir",
        "distributed",
    }
    assert {"config", "workdir", "distributed"} <= flags_of(program)
    assert POD["terminationGracePeriodSeconds"] >= 60


def test_kueue_queues_it():
    assert MANIFEST["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
