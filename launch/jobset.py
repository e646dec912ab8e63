"""Runs a command on GKE and ends with its exit code, for the sweep's backend xpk.

    python -m launch.jobset NAME [options of launch.gke] -- train.py ...

Again with the same name it follows the JobSet that is there; one that has failed is
replaced. It is followed by `kubectl`, in its present context.
"""

import contextlib
import io
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from launch import gke

_MAX_SILENT_POLLS = 40
_HOW_TO_GET = {
    "kubectl": "gcloud components install kubectl, then gcloud container clusters "
    "get-credentials CLUSTER --zone=...",
    "xpk": "pip install xpk",
}


def main(arguments: Sequence[str], poll_secs: float = 30.0) -> int:
    """Creates the JobSet unless it is there, and waits for its end."""
    words = list(arguments)
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        code = gke.main(words)
    if code:
        return code
    given = words[: words.index("--")]
    options = gke.parser().parse_args(given)
    name, namespace = options.name, options.namespace
    state = _state(name, namespace)
    if state == "Failed":
        _check(_kubectl("delete", "jobset", name, namespace=namespace))
        state = None
    if state is None:
        _create(written.getvalue(), namespace)
        print(f"JobSet {name}: created", flush=True)
    else:
        print(f"JobSet {name}: {state or 'going on'}", flush=True)
    silent = 0
    while state not in ("Completed", "Failed"):
        time.sleep(poll_secs)
        try:
            state = _state(name, namespace)
            silent = 0
        except OSError:
            silent += 1
            if silent > _MAX_SILENT_POLLS:
                raise
            continue
        if state is None:
            print(f"error: JobSet {name} is gone: somebody deleted it", file=sys.stderr)
            return 1
    selector = f"jobset.sigs.k8s.io/jobset-name={name}"
    logs = _kubectl("logs", f"-l{selector}", "--tail=20", namespace=namespace)
    print(logs.stdout)
    print(f"JobSet {name}: {state}")
    return 0 if state == "Completed" else 1


def _state(name: str, namespace: str) -> str | None:
    """Returns the state of a JobSet, "" while it runs, None if there is none.

    Raises:
      OSError: if the cluster does not answer.
    """
    done = _kubectl(
        "get", "jobset", name, "-ojson", "--ignore-not-found", namespace=namespace
    )
    _check(done)
    if not done.stdout.strip():
        return None
    return json.loads(done.stdout).get("status", {}).get("terminalState", "")


def _create(written: str, namespace: str) -> None:
    """Applies a manifest, or makes the call of xpk that was written in its place."""
    if written.lstrip().startswith("{"):
        _check(_kubectl("apply", "-f", "-", namespace=namespace, text=written))
    else:
        _check(_run(shlex.split(written)))


def _kubectl(
    *words: str, namespace: str, text: str | None = None
) -> subprocess.CompletedProcess:
    return _run(["kubectl", f"--namespace={namespace}", *words], text)


def _run(words: Sequence[str], text: str | None = None) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(words, input=text, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{words[0]} is not on PATH: {_HOW_TO_GET[words[0]]}"
        ) from error


def _check(done: subprocess.CompletedProcess) -> None:
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise OSError(f"{shlex.join(done.args[:4])} ...: {' '.join(said[-2:])}")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OSError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(
            "\nnot followed any more; the JobSet goes on (the same command follows it)"
        )
        sys.exit(130)
