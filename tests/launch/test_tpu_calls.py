"""The calls that would be made, without making any."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile

import pytest

from launch import archive, commands, gcloud, host, lifecycle, request, tpu
from launch.gcloud import Answer, Gcloud, GcloudError
from launch.slices import Slice, parse_labels

RUN = Slice("my-run", "us-west4-a", "v5litepod-16")


def sliced(**values):
    return Slice(
        **{"name": "my-run", "zone": "us-west4-a", "type": "v5litepod-16", **values}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "My run"}, "name 'My run'"),
        ({"name": "x; rm -rf ~"}, "name 'x; rm"),
        ({"name": "a" * 41}, "2 to 40"),
        ({"zone": "us-west4"}, "a zone such as us-west4-a"),
        ({"zone": "--help"}, "zone '--help'"),
        ({"type": "v5e-16"}, "v5e is called v5litepod"),
        ({"type": "v7x-16"}, "TPU7x is not offered"),
        ({"count": 0}, "0 slices"),
        ({"capacity": "cheap"}, "on-demand, spot, reserved"),
        ({"reservation": "mine"}, "goes with capacity reserved"),
        ({"project": "P"}, "project 'P'"),
        ({"runtime": "a b"}, "runtime 'a b'"),
        ({"service_account": "me"}, "e-mail"),
        ({"valid_until": "soon"}, "a duration such as 6h"),
        ({"labels": (("Team", "x"),)}, "label 'Team'"),
        ({"labels": (("team", "a,b=c"),)}, "value of label team"),
    ],
)
def test_what_the_cloud_would_refuse_is_refused_first(change, message):
    with pytest.raises(ValueError, match=message):
        sliced(**change)


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        ({}, {"--runtime-version=v2-alpha-tpuv5-lite", "--node-id=my-run"}),
        ({"type": "v6e-8"}, {"--runtime-version=v2-alpha-tpuv6e"}),
        ({"type": "v5p-8"}, {"--runtime-version=v2-alpha-tpuv5"}),
        ({"type": "v4-8"}, {"--runtime-version=tpu-ubuntu2204-base"}),
        ({"runtime": "other"}, {"--runtime-version=other"}),
        ({"capacity": "spot"}, {"--spot"}),
        ({"capacity": "reserved"}, {"--reserved"}),
        (
            {"capacity": "reserved", "reservation": "mine"},
            {"alpha", "--reservation=mine"},
        ),
        ({"count": 4}, {"--node-count=4", "--node-prefix=my-run"}),
        ({"internal_ips": True}, {"--internal-ips"}),
        ({"valid_until": "6h"}, {"--valid-until-duration=6h"}),
        ({"project": "my-project"}, {"--project=my-project"}),
        ({"labels": parse_labels(["team=a"])}, {"--labels=copymit=my-run,team=a"}),
    ],
)
def test_every_wish_becomes_a_flag(change, flags):
    assert flags <= {*gcloud.create_request(sliced(**change))}


def test_on_demand_is_what_no_flag_asks_for():
    call = gcloud.create_request(RUN)
    assert not {"--spot", "--reserved", "alpha"} & {*call}


def test_hosts_without_public_addresses_are_reached_by_a_tunnel():
    inside = sliced(internal_ips=True)
    assert "--tunnel-through-iap" in gcloud.ssh(inside, "true")
    assert "--tunnel-through-iap" in gcloud.scp(inside, ["a"], "b")
    assert "--tunnel-through-iap" not in gcloud.ssh(RUN, "true")


def test_a_program_gets_its_interpreter_and_joins_the_other_hosts():
    found = commands.command_of_hosts(["train.py", "--workdir=gs://b/x"])
    assert found == ["python", "train.py", "--workdir=gs://b/x", "--distributed"]
    assert (
        commands.command_of_hosts(["train.py", "--distributed"])[-1] == "--distributed"
    )
    assert commands.command_of_hosts(["python", "-m", "x"]) == ["python", "-m", "x"]


@pytest.mark.parametrize(
    "word",
    [
        "--token=abc",
        "HF_TOKEN=abc",
        "--config.wandb_api_key=abc",
        "--password=abc",
        "--flag=hf_" + "a" * 34,
    ],
)
def test_a_secret_in_a_command_is_refused_without_being_shown(word):
    with pytest.raises(ValueError, match="--env-file") as error:
        commands.command_of_hosts(["train.py", word])
    assert "abc" not in str(error.value)
    assert "aaaa" not in str(error.value)


@pytest.mark.parametrize(
    "word",
    ["--config.data.tokens=77", "--config.mitigation.random_token_addition=2", "keys"],
)
def test_settings_that_only_sound_like_secrets_are_taken(word):
    assert word in commands.command_of_hosts(["train.py", word])


def test_a_workdir_outside_a_bucket_is_refused():
    for words in (
        ["train.py", "--workdir=runs/x"],
        ["train.py", "--workdir", "runs/x"],
    ):
        with pytest.raises(ValueError, match="gs://BUCKET"):
            commands.check_workdir(words)
    commands.check_workdir(["train.py", "--workdir", "gs://b/x"])
    commands.check_workdir(["python", "-m", "launch.doctor"])


def test_the_same_command_is_the_same_run():
    assert commands.run_id_of(["a", "b"]) == commands.run_id_of(("a", "b"))
    assert commands.run_id_of(["a", "b"]) != commands.run_id_of(["a b"])


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "checkout"
    (root / "package").mkdir(parents=True)
    (root / "train.py").write_text("print(1)\n")
    (root / "package/a.py").write_text("")
    (root / "package/run.sh").write_text("#!/bin/sh\n")
    (root / "package/run.sh").chmod(0o755)
    (root / ".gitignore").write_text("data/\n")
    subprocess.run(["git", "-C", root, "init", "-q"], check=True)
    subprocess.run(["git", "-C", root, "add", "."], check=True)
    (root / "data").mkdir()
    (root / "data/key.json").write_text("secret")
    (root / "new.py").write_text("")
    return root


def test_tracked_files_travel_as_they_are_now_and_nothing_else(checkout, tmp_path):
    (checkout / "train.py").write_text("print(2)\n")
    found = archive.pack(checkout)
    assert found.untracked == ("new.py",)
    with tarfile.open(found.save(tmp_path)) as tar:
        names = tar.getnames()
        assert tar.extractfile("train.py").read() == b"print(2)\n"
        assert tar.getmember("package/run.sh").mode == 0o755
    assert names == [".gitignore", "package/a.py", "package/run.sh", "train.py"]


def test_equal_code_gives_equal_archives(checkout, tmp_path):
    first = archive.pack(checkout)
    os.utime(checkout / "train.py", (0, 0))
    assert archive.pack(checkout) == first
    (checkout / "train.py").write_text("print(3)\n")
    assert archive.pack(checkout).digest != first.digest


def test_a_folder_that_is_no_checkout_is_named(tmp_path):
    with pytest.raises(ValueError, match="run from a checkout"):
        archive.pack(tmp_path)


def answers(*texts):
    """A runner that gives these answers, the last one for ever, and keeps the calls."""
    left, calls = list(texts), []

    def run(words, timeout):
        calls.append(list(words))
        return left.pop(0) if len(left) > 1 else left[0]

    return run, calls


def test_passing_faults_are_waited_out_with_growing_pauses():
    busy = Answer("", "ERROR: UNAVAILABLE: The service is currently unavailable.", 1)
    run, calls = answers(busy, busy, busy, Answer("done", "", 0))
    pauses = []
    assert Gcloud(run, pauses.append).call(["gcloud"]) == "done"
    assert len(calls) == 4
    assert pauses == [2, 4, 8]


def test_faults_that_do_not_pass_end_it():
    run, calls = answers(Answer("", "ERROR: UNAVAILABLE", 1))
    with pytest.raises(GcloudError, match="UNAVAILABLE"):
        Gcloud(run, lambda _secs: None, attempts=3).call(["gcloud"])
    assert len(calls) == 3


# What gcloud has printed, here and in public reports.
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Maximum number of CreateNode requests per minute reached", "transient"),
        ("NOT_FOUND: Resource 'projects/p/...' was not found", "missing"),
        ("ALREADY_EXISTS: Resource already exists", "exists"),
        (
            "Quota limit 'TPUV6EPreemptiblePerProject' has been exceeded. Limit: 0",
            "quota",
        ),
        ("PERMISSION_DENIED: Cloud TPU API has not been used in project", "denied"),
        ("SSH Key is not present in the SSH agent. Please run", "no-agent"),
        ('may have happened if you have not added your key using "ssh-add', "other"),
        ("Connection reset by peer", "transient"),
        ("Location us-x1-a is not found or access is unauthorized.", "elsewhere"),
        ("DeleteQueuedResource is not supported when state is X", "passing-state"),
        ("PERMISSION_DENIED: The API requires a quota project", "denied"),
        ("You do not currently have an active account selected", "signed-out"),
    ],
)
def test_messages_are_sorted_by_what_helps(text, kind):
    assert gcloud.kind_of(f"ERROR: (gcloud.x) {text}") == kind


def test_a_call_that_hangs_is_ended_with_all_that_it_has_started(tmp_path):
    note = tmp_path / "child"
    script = f"sleep 60 & echo $! > {note}; echo said; wait"
    answer = gcloud.execute(["sh", "-c", script], timeout=1)
    assert answer.code == 124
    assert answer.out == "said\n"
    assert "timed out after 1 s" in answer.err
    child = note.read_text().strip()
    stat = subprocess.run(
        ["ps", "-o", "stat=", "-p", child], capture_output=True, text=True
    )
    assert stat.stdout.strip()[:1] in ("", "Z")


def test_ctrl_c_at_the_end_of_a_call_is_ctrl_c(monkeypatch):
    def communicate(process, timeout):
        process.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
    with pytest.raises(KeyboardInterrupt):
        gcloud.execute(["true"], timeout=10)


def test_hosts_that_stay_silent_end_the_waiting_with_advice():
    there = json.dumps({"state": {"state": "ACTIVE"}, "networkEndpoints": [{}, {}]})
    node = json.dumps({"state": "READY", "networkEndpoints": [{}, {}]})

    def run(words, timeout):
        if "ssh" in words:
            return Answer('@copymit {"host": "w-0", "state": "ready"}', "refused", 255)
        return Answer(node if "tpu-vm" in words else there, "", 0)

    pace = request.Pace(poll_secs=0, unreachable_secs=0)
    cloud = request.Cloud(Gcloud(run, lambda _secs: None), pace, lambda _text: None)
    with pytest.raises(TimeoutError, match=r"1 of 2 hosts .*w-0 did.*ssh-add"):
        lifecycle.ask_all(cloud, RUN, 2, "poll")


def test_a_long_wait_tells_how_long_it_has_lasted():
    states = iter(["WAITING_FOR_RESOURCES"] * 3 + ["ACTIVE"])

    def run(words, timeout):
        return Answer(json.dumps({"state": {"state": next(states)}}), "", 0)

    said = []
    pace = request.Pace(poll_secs=0, news_secs=0)
    cloud = request.Cloud(Gcloud(run, lambda _secs: None), pace, said.append)
    assert not request.ensure_active(cloud, RUN)
    waiting = "my-run: WAITING_FOR_RESOURCES"
    assert said == [waiting, f"{waiting} for 0 min", "my-run: ACTIVE"]


def test_a_deletion_that_is_refused_for_ever_ends_with_the_reason():
    refusal = "ERROR: DeleteQueuedResource is not supported when state is SUSPENDING"

    def run(words, timeout):
        found = json.dumps({"state": {"state": "SUSPENDING"}})
        return Answer("", refusal, 1) if "delete" in words else Answer(found, "", 0)

    pace = request.Pace(poll_secs=0, unreachable_secs=0)
    cloud = request.Cloud(Gcloud(run, lambda _secs: None), pace, lambda _text: None)
    with pytest.raises(GcloudError, match="not supported when state is SUSPENDING"):
        request.delete(cloud, RUN)


def test_answers_are_read_between_what_else_is_printed():
    text = 'banner\n@copymit {"host": "b", "state": "x"}\nnoise @copymit {}\n'
    text += '@copymit {"host": "a", @copymit\n@copymit {"host": "a", "state": "y"}\n'
    found = lifecycle.read_answers(Answer(text, "", 0))
    assert [a["host"] for a in found] == ["a", "b"]


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("create", ["describe", "create", "describe"]),
        ("setup", ["describe", "describe", "ssh", "scp", "ssh"]),
        ("status", ["describe", "describe", "describe", "ssh"]),
        ("logs", ["ssh"]),
        ("stop", ["describe", "describe", "ssh"]),
        ("delete", ["describe", "delete", "describe"]),
    ],
)
def test_a_rehearsal_prints_the_calls_and_makes_none(
    verb, expected, capsys, monkeypatch
):
    monkeypatch.setenv("PATH", os.path.dirname(shutil.which("git")))
    monkeypatch.setattr(gcloud, "execute", None)
    kind = ["--type=v5litepod-16"] if verb == "create" else []
    assert tpu.main([verb, "my-run", "--zone=us-west4-a", "--dry-run", *kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    calls = [line.split() for line in lines if line.startswith("gcloud ")]
    assert [call[4] for call in calls] == expected


def test_a_rehearsed_run_shows_the_command_of_every_host(capsys):
    flags = ["my-run", "--zone=us-west4-a", "--type=v5litepod-16", "--dry-run"]
    words = ["train.py", "--workdir=gs://b/it's"]
    assert tpu.main(["run", *flags, "--", *words]) == 0
    (start,) = (x for x in capsys.readouterr().out.splitlines() if " start " in x)
    # What the shell of a host makes of it.
    (command,) = (w for w in shlex.split(start) if w.startswith("--command="))
    words_there = subprocess.run(
        ["sh", "-c", f'set -- {command.removeprefix("--command=")}; echo "$5"'],
        capture_output=True,
        text=True,
    )
    assert json.loads(words_there.stdout) == ["python", *words, "--distributed"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "a1", "--zone=us-west4-a", "--", "train.py"], "--type is missing"),
        (["stop", "a1", "--zone=us-west4-a", "--", "x"], "takes no command"),
        (
            [
                "run",
                "a1",
                "--zone=us-west4-a",
                "--type=v6e-4",
                "--",
                "train.py",
                "--workdir=x",
            ],
            "use gs://",
        ),
        (
            ["create", "a1", "--zone=us-west4-a", "--type=v6e-4", "--label=x"],
            "KEY=VALUE",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(words, message, capsys):
    assert tpu.main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said


def test_the_program_on_the_hosts_needs_an_old_python_only():
    path = lifecycle.__file__.replace("lifecycle.py", "host.py")
    code = f"import ast; ast.parse(open({path!r}).read(), feature_version=(3, 8))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_host_with_an_old_python_gets_another_one_into_our_directory(monkeypatch):
    done = []
    monkeypatch.setattr(host, "is_new_enough", lambda _python: False)
    monkeypatch.setattr(host, "log_and_run", lambda words, **_: done.append(words))
    host.make_environment()
    (install, make) = done
    assert install[-3:] == ["--target", host.ROOT / "tools", "uv"]
    assert make[:2] == [host.ROOT / "tools/bin/uv", "venv"]
    assert make[-1] == host.VENV
    kept = host.environment()
    for name in (
        "UV_PYTHON_INSTALL_DIR",
        "UV_CACHE_DIR",
        "XDG_CACHE_HOME",
        "TPU_LOG_DIR",
    ):
        assert kept[name].startswith(str(host.ROOT))


def test_a_host_with_a_new_python_uses_it(monkeypatch):
    done = []
    monkeypatch.setattr(host, "is_new_enough", lambda python: python.endswith("3.11"))
    monkeypatch.setattr(host.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(host, "log_and_run", lambda words, **_: done.append(words))
    host.make_environment()
    assert done == [["/usr/bin/python3.11", "-m", "venv", host.VENV]]
