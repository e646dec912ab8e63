"""What happens on one host of a slice; sent there and started by launch.tpu.

    python3 copymit-NAME/host.py setup DIGEST | start ID COMMAND | poll | log N | stop SECS

Knows the standard library only and Python 3.8, since it makes the environment of the
run, and touches nothing outside the directory that it lies in: code, interpreter,
environment, caches, logs and notes of runs are all below it. Every answer is one line,
`@copymit {json}`, so that what ssh and other hosts print cannot be taken for it.
"""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CODE, VENV, RUNS = ROOT / "code", ROOT / ".venv", ROOT / "runs"
OLDEST_PYTHON = (3, 11)
RETRY_SECS = float(os.environ.get("COPYMIT_RETRY_SECS", "10"))
TOLD_TO_END = 128 + signal.SIGTERM
HOST = os.environ.get("HOSTNAME") or socket.gethostname()


def answer(**values):
    print("@copymit " + json.dumps({"host": HOST, **values}), flush=True)


def read(path, default=""):
    try:
        return path.read_text().strip()
    except OSError:
        return default


def tail(path, count):
    """Returns the last lines of a log that may be long."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - 300 * count))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def write(path, text):
    """Replaces a file at once, so that a reader never sees half of it."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    os.replace(new, path)


def environment():
    """Variables that keep caches and logs inside our directory."""
    path = os.pathsep.join([str(VENV / "bin"), os.environ.get("PATH", os.defpath)])
    return {
        **os.environ,
        "PATH": path,
        "VIRTUAL_ENV": str(VENV),
        "XDG_CACHE_HOME": str(ROOT / "cache"),
        "HF_HOME": str(ROOT / "cache" / "huggingface"),
        "PIP_CACHE_DIR": str(ROOT / "cache" / "pip"),
        "UV_CACHE_DIR": str(ROOT / "cache" / "uv"),
        "UV_PYTHON_INSTALL_DIR": str(ROOT / "python"),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / "cache" / "jax"),
        "TPU_LOG_DIR": str(ROOT / "tpu_logs"),
        "PYTHONUNBUFFERED": "1",
    }


# --- setup -----------------------------------------------------------------------------


def setup(digest):
    """Unpacks the code and installs it; what is up to date is left alone."""
    with open(ROOT / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if read(ROOT / "code.digest") != digest:
            current = read(RUNS / "current")
            if current and state_of(current)["state"] == "running":
                sys.exit("a run with other code is going on here; stop it first")
            # Until it is written again, the code that lies here is unknown.
            (ROOT / "code.digest").unlink(missing_ok=True)
            unpack(ROOT / f"code-{digest}.tgz")
            write(ROOT / "code.digest", digest)
        wanted = "".join(
            read(CODE / name)
            for name in ("setup.cfg", "pyproject.toml", "constraints.txt")
        )
        if (
            read(ROOT / "installed") != wanted.strip()
            or not (VENV / "bin/python").exists()
        ):
            install()
            write(ROOT / "installed", wanted)
    answer(state="ready")


def unpack(archive):
    new = ROOT / "code.new"
    shutil.rmtree(new, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(new)
    shutil.rmtree(CODE, ignore_errors=True)
    os.replace(new, CODE)
    for old in ROOT.glob("code-*.tgz"):
        if old != archive:
            old.unlink()


def install():
    if not (VENV / "bin/python").exists():
        make_environment()
    constraints = (
        ["-c", "constraints.txt"] if (CODE / "constraints.txt").exists() else []
    )
    pip = [VENV / "bin/python", "-m", "pip", "install", "--disable-pip-version-check"]
    # jax asks the metadata of the TPU VM through requests, and does not depend on it.
    log_and_run([*pip, "--quiet", *constraints, "-e", ".[tpu]", "requests"], attempts=3)


def make_environment():
    """Makes the environment with a new enough Python, fetching one if there is none.

    The images of TPU VMs are Ubuntu 22.04 with Python 3.10; uv puts another one into our
    directory, where apt would change the system.
    """
    for name in ("python3.11", "python3.12", "python3.13", "python3"):
        found = shutil.which(name)
        if found and is_new_enough(found):
            log_and_run([found, "-m", "venv", VENV])
            return
    tools = ROOT / "tools"
    log_and_run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", tools, "uv"],
        attempts=3,
    )
    version = "{}.{}".format(*OLDEST_PYTHON)
    log_and_run(
        [tools / "bin/uv", "venv", "--seed", "--python", version, VENV], attempts=3
    )


def is_new_enough(python):
    code = f"import sys, ensurepip; sys.exit(sys.version_info < {OLDEST_PYTHON})"
    return subprocess.run([python, "-c", code], capture_output=True).returncode == 0


def log_and_run(words, attempts=1):
    """Runs a step of the setup; its output goes to setup.log."""
    words = [str(word) for word in words]
    with open(ROOT / "setup.log", "ab") as log:
        for attempt in range(attempts):
            log.write(f"$ {' '.join(words)}\n".encode())
            log.flush()
            done = subprocess.run(
                words, cwd=CODE, env=environment(), stdout=log, stderr=subprocess.STDOUT
            )
            if done.returncode == 0:
                return
            if attempt + 1 < attempts:
                time.sleep(RETRY_SECS * (attempt + 1))
    last = " | ".join(tail(ROOT / "setup.log", 4))
    sys.exit(f"{' '.join(words[:4])}...: {last}")


# --- runs ------------------------------------------------------------------------------


def boot_id():
    return read(Path("/proc/sys/kernel/random/boot_id"))


def state_of(run):
    """The state of a run: absent, running, exited (with code) or vanished.

    Vanished means that its process is gone and has left no exit code, or has ended by
    the SIGTERM that nobody here has sent: the host was restarted, as maintenance does, or
    is about to be taken away.
    """
    folder = RUNS / run
    if not run or not (folder / "command.json").exists():
        return {"run": run, "state": "absent"}
    found = {"run": run, "last": "".join(tail(folder / "log", 1))[-200:]}
    stopped = (folder / "stopped").exists()
    if stopped:
        found["stopped"] = True
    code = read(folder / "exit_code")
    if code and int(code) == TOLD_TO_END and not stopped:
        return {**found, "state": "vanished"}
    if code:
        return {**found, "state": "exited", "code": int(code)}
    process, _, boot = read(folder / "process").partition(" ")
    if process and boot == boot_id() and is_ours(int(process), run):
        started = (folder / "process").stat().st_mtime
        return {**found, "state": "running", "secs": round(time.time() - started)}
    return {**found, "state": "vanished"}


def is_ours(process, run):
    words = read(Path(f"/proc/{process}/cmdline")).split("\0")
    return "watch" in words and run in words


def start(run, command):
    """Starts a command, a list in JSON, detached; one that is running is left alone."""
    with open(ROOT / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        current = read(RUNS / "current")
        if current and current != run and state_of(current)["state"] == "running":
            sys.exit(f"run {current} is going on here; stop it first")
        if state_of(run)["state"] != "running":
            folder = RUNS / run
            folder.mkdir(parents=True, exist_ok=True)
            write(folder / "command.json", command)
            for stale in ("exit_code", "process", "stopped"):
                if (folder / stale).exists():
                    (folder / stale).unlink()
            write(RUNS / "current", run)
            # A session of its own: the end of the ssh connection does not reach it.
            watcher = subprocess.Popen(
                [sys.executable, str(ROOT / "host.py"), "watch", run],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            write(folder / "process", f"{watcher.pid} {boot_id()}")
    answer(**{**state_of(run), "state": "running"})


def watch(run):
    """Runs the command to its end and keeps its exit code."""
    # Signals are for the command, which saves a checkpoint and ends.
    signal.signal(signal.SIGTERM, lambda *_: None)
    folder = RUNS / run
    command = json.loads(read(folder / "command.json"))
    variables = environment()
    for line in read(ROOT / "env").splitlines():
        name, equals, value = line.partition("=")
        if equals and not name.startswith("#"):
            variables[name.strip()] = value.strip()
    command[0] = shutil.which(command[0], path=variables["PATH"]) or command[0]
    with open(folder / "log", "ab") as log:
        log.write(f"--- {time.strftime('%F %T')} on {HOST}\n".encode())
        log.flush()
        try:
            code = subprocess.run(
                command,
                cwd=CODE,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            ).returncode
        except OSError as error:
            log.write(f"{error}\n".encode())
            code = 127
    write(folder / "exit_code", str(code if code >= 0 else 128 - code))


def stop(seconds):
    """Ends the current run: SIGTERM, which saves a checkpoint, then SIGKILL."""
    run = read(RUNS / "current")
    if run:
        # Before the signal: the other hosts hear of it and may end before they are told.
        write(RUNS / run / "stopped", "")
    if state_of(run)["state"] == "running":
        group = int(read(RUNS / run / "process").split()[0])
        os.killpg(group, signal.SIGTERM)
        deadline = time.time() + float(seconds)
        while time.time() < deadline and state_of(run)["state"] == "running":
            time.sleep(0.1)
        if state_of(run)["state"] == "running":
            os.killpg(group, signal.SIGKILL)
            write(RUNS / run / "exit_code", str(128 + signal.SIGKILL))
    found = state_of(run)
    answer(**found)


def poll(run=""):
    answer(**state_of(run or read(RUNS / "current")))


def log(count):
    run = read(RUNS / "current")
    path = RUNS / run / "log" if run else ROOT / "setup.log"
    for line in tail(path, int(count)):
        print(f"@log {HOST} {line}", flush=True)
    answer(**state_of(run))


VERBS: dict = {
    "setup": setup,
    "start": start,
    "watch": watch,
    "stop": stop,
    "poll": poll,
    "log": log,
}

if __name__ == "__main__":
    try:
        verb = VERBS[sys.argv[1]]
        verb(*sys.argv[2:])
    except SystemExit as error:
        if not isinstance(error.code, str):
            raise
        answer(state="error", error=error.code)
        sys.exit(1)
    except Exception as error:
        answer(state="error", error=f"{type(error).__name__}: {error}")
        sys.exit(1)
