"""Writes the manifest of a run on GKE: a JobSet, one Job a slice, one Pod a host.

    python -m launch.gke my-run --type=v5litepod-16 --spot \\
        --image=us-docker.pkg.dev/my-project/my-repository/copymit:1 -- \\
        train.py --config=configs/laion10k.py --workdir=gs://my-bucket/laion10k \\
        | kubectl apply -f -

The command is the one of launch.tpu. --xpk prints the `xpk workload create` call for the
same run instead. docs/tpu.md says what a cluster needs.
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from launch.commands import check_workdir, command_of_hosts
from launch.slices import Slice, parse_labels, split_type

# https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
_ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5litepod": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16"}
_FLAT |= {256: "16x16"}
_CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"}
_CUBES |= {256: "4x8x8", 512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16"}
_EXCLUSIVE = "alpha.jobset.sigs.k8s.io/exclusive-topology"
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_NAME_OR_NOTHING = re.compile(r"([a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?)?")
_GRACE_SECS = 120  # SIGTERM saves a checkpoint; GKE grants less on spot machines
_IMAGE = re.compile(
    r"[a-z0-9][-a-z0-9._:/]*[a-z0-9](@sha256:[0-9a-f]{64})?", re.IGNORECASE
)


def shape_of(accelerator_type: str) -> tuple[str, str, int, int]:
    """Returns accelerator label, topology, hosts and chips of each host of a type.

    The number in v5litepod-16 and v6e-16 counts chips, in v4-16 and v5p-16 the two cores
    of each chip. Up to eight chips of v5e and v6e are on one host, else four are.

    Raises:
        ValueError: if GKE has no such slice, with those it has.
    """
    family, size = split_type(accelerator_type)
    if family not in _ACCELERATORS:
        raise ValueError(
            f"{family} is not offered in GKE; {', '.join(_ACCELERATORS)} are"
        )
    flat = family in ("v5litepod", "v6e")
    shapes = _FLAT if flat else _CUBES
    chips = size if flat else size // 2
    if chips not in shapes or (not flat and size % 2):
        sizes = ", ".join(f"{family}-{n if flat else 2 * n}" for n in shapes)
        raise ValueError(f"{accelerator_type} is not a slice of GKE; there are {sizes}")
    per_host = chips if flat and chips <= 8 else 4
    return _ACCELERATORS[family], shapes[chips], chips // per_host, per_host


def manifest(
    name: str,
    accelerator_type: str,
    image: str,
    command: Sequence[str],
    *,
    slices: int = 1,
    spot: bool = False,
    restarts: int = 20,
    namespace: str = "default",
    service_account: str = "",
    queue: str = "",
    secret: str = "",
    labels: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    """Returns a JobSet that runs a command on every host of some slices.

    JobSet makes the headless service by which the hosts find each other, and GKE puts
    TPU_WORKER_HOSTNAMES and, for several slices, MEGASCALE_* into each Pod:
    `jax.distributed.initialize()` needs nothing else. A Pod that is lost fails its Job,
    and all Jobs are made anew: training goes on from its newest checkpoint.

    Args:
        command: what each host starts, as from `command_of_hosts`.
        restarts: how many errors to bear; nodes taken away do not count.
        queue: a LocalQueue of Kueue, if the cluster has it.
        secret: a Secret of the namespace whose entries become variables.

    Raises:
        ValueError: if a name or the image is not valid, or there is no such slice.
    """
    # The checks of names, labels and counts are those of a slice; GKE knows the place.
    Slice(name, "us-central1-a", accelerator_type, slices, labels=tuple(labels))
    _check(_NAME, "namespace", namespace, "letters, digits and -, such as team-a")
    _check_image(image)
    names = {"service account": service_account, "secret": secret, "queue": queue}
    for what, value in names.items():
        _check(_NAME_OR_NOTHING, what, value, "its name in the namespace")
    hosts = shape_of(accelerator_type)[2]
    if slices > 1 and hosts == 1:
        raise ValueError(
            f"{slices} slices of {accelerator_type}: several slices must have more than "
            "one host each; take one larger slice"
        )
    tags = {"app.kubernetes.io/name": "copymit", **dict(labels)}
    pod = _pod(accelerator_type, image, command, spot, service_account, secret)
    job = {
        "backoffLimit": 0,  # One lost Pod is a lost slice.
        "completions": hosts,
        "parallelism": hosts,
        "completionMode": "Indexed",
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                }
            ]
        },
        "template": {"metadata": {"labels": tags}, "spec": pod},
    }
    disrupted = {
        "name": "disrupted",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {
                **tags,
                **({"kueue.x-k8s.io/queue-name": queue} if queue else {}),
            },
            # One Job on one node pool, which is one slice.
            "annotations": {_EXCLUSIVE: "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {"maxRestarts": restarts, "rules": [disrupted]},
            "network": {"enableDNSHostnames": True},
            "replicatedJobs": [
                {"name": "slice", "replicas": slices, "template": {"spec": job}}
            ],
        },
    }


def _pod(
    accelerator_type: str,
    image: str,
    command: Sequence[str],
    spot: bool,
    service_account: str,
    secret: str,
) -> dict[str, Any]:
    label, topology, _, chips = shape_of(accelerator_type)
    selector = {
        "cloud.google.com/gke-tpu-accelerator": label,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    taints = {"google.com/tpu": "present"}
    if spot:
        selector["cloud.google.com/gke-spot"] = "true"
        taints["cloud.google.com/gke-spot"] = "true"
    container: dict[str, Any] = {
        "name": "copymit",
        "image": image,
        "command": list(command),
        # 8471 for libtpu, 8482 for jax.distributed.
        "ports": [{"containerPort": 8471}, {"containerPort": 8482}],
        "resources": {
            "requests": {"google.com/tpu": chips},
            "limits": {"google.com/tpu": chips},
        },
    }
    if secret:
        container["envFrom"] = [{"secretRef": {"name": secret}}]
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "nodeSelector": selector,
        "tolerations": [
            {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
            for key, value in taints.items()
        ],
        "terminationGracePeriodSeconds": _GRACE_SECS,
        "containers": [container],
    }
    if service_account:
        pod["serviceAccountName"] = service_account
    return pod


def _check_image(image: str) -> None:
    expected = "one such as us-docker.pkg.dev/PROJECT/REPOSITORY/copymit:1"
    _check(_IMAGE, "image", image, expected)


def _check(pattern: re.Pattern, what: str, value: str, expected: str) -> None:
    if pattern.fullmatch(value) is None:
        raise ValueError(f"{what} {value!r}: expected {expected}")


def xpk_command(
    name: str,
    accelerator_type: str,
    image: str,
    command: Sequence[str],
    *,
    cluster: str,
    zone: str,
    project: str = "",
    slices: int = 1,
    spot: bool = False,
    restarts: int = 20,
) -> list[str]:
    """Returns the call of xpk for the same run.

    Source: https://github.com/AI-Hypercomputer/xpk, `xpk workload create --help`.

    Raises:
        ValueError: if a name, the zone or the image is not valid, or there is no such
            slice.
    """
    shape_of(accelerator_type)
    Slice(name, zone, accelerator_type, slices, project=project)
    _check(_NAME, "cluster", cluster, "letters, digits and -, such as my-cluster")
    _check_image(image)
    return [
        *("xpk", "workload", "create"),
        f"--cluster={cluster}",
        f"--zone={zone}",
        *([f"--project={project}"] if project else []),
        f"--workload={name}",
        f"--tpu-type={accelerator_type}",
        f"--num-slices={slices}",
        f"--docker-image={image}",
        f"--max-restarts={restarts}",
        f"--termination-grace-period-seconds={_GRACE_SECS}",
        *(["--spot"] if spot else []),
        f"--command={shlex.join(command)}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the manifest, which is JSON and thereby YAML, or the call of xpk."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    cut = words.index("--") if "--" in words else len(words)
    options = parser().parse_args(words[:cut])
    try:
        command = command_of_hosts(words[cut + 1 :])
        check_workdir(command)
        common = (options.name, options.type, options.image, command)
        counts = {
            "slices": options.slices,
            "spot": options.spot,
            "restarts": options.restarts,
        }
        if options.xpk:
            _refuse_what_xpk_does_not_know(options)
            place = {"cluster": options.xpk, "zone": options.zone}
            call = xpk_command(*common, **place, project=options.project, **counts)
            print(shlex.join(call))
            return 0
        found = manifest(
            *common,
            **counts,
            namespace=options.namespace,
            service_account=options.service_account,
            queue=options.queue,
            secret=options.secret,
            labels=parse_labels(options.label),
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=2))
    return 0


def _refuse_what_xpk_does_not_know(options: argparse.Namespace) -> None:
    names = ("namespace", "service_account", "queue", "secret", "label")
    given = [
        name for name in names if getattr(options, name) not in ("", "default", [])
    ]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{flags}: not passed on by --xpk; leave it out, or --xpk")


def parser() -> argparse.ArgumentParser:
    """Makes the parser of what stands before the command."""
    made = argparse.ArgumentParser(
        prog="python -m launch.gke",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("name", help="of the JobSet")
    add("--type", required=True, help="accelerator type, such as v5litepod-16")
    add("--image", required=True, help="made from the Dockerfile, in a registry")
    add("--slices", type=int, default=1)
    add("--spot", action="store_true", help="on node pools of spot machines")
    add("--restarts", type=int, default=20, help="losses to bear")
    add("--namespace", default="default")
    add("--service-account", default="", help="of Kubernetes, bound to one of Google's")
    add("--queue", default="", help="a LocalQueue of Kueue")
    add("--secret", default="", help="a Secret whose entries become variables")
    add("--label", action="append", default=[], help="KEY=VALUE")
    add("--xpk", default="", metavar="CLUSTER", help="print the call of xpk instead")
    add("--zone", default="us-central1-a", help="of the cluster, for --xpk")
    add("--project", default="", help="of the cluster, for --xpk")
    return made


if __name__ == "__main__":
    sys.exit(main())
