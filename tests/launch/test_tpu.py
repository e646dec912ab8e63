"""The verbs of launch.tpu against a gcloud that behaves as the real one does."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import lifecycle, request, tpu
from launch.gcloud import Gcloud
from launch.slices import Slice

# Every call is a process: about two seconds a test.
pytestmark = pytest.mark.slow


def test_a_run_is_created_set_up_started_and_followed_to_its_end(cloud, capsys):
    assert cloud.train("--spot", "--label=team=vision") == 0
    assert cloud.steps() == [0, 1, 2, 3, 4]
    (create,) = cloud.calls("create")
    assert {"--spot", "--node-id=run", "--labels=copymit=run,team=vision"} <= {*create}
    said = capsys.readouterr().err
    assert "PROVISIONING" in said
    assert "ended with exit code 0" in said
    logs = [
        next(cloud.host(index).glob("copymit-run/runs/*/log")).read_text()
        for index in range(2)
    ]
    assert all("True no token" in log for log in logs)  # --distributed was added
    assert "step 4" in logs[0]


def test_nothing_but_one_directory_is_touched_on_a_host(cloud):
    assert cloud.train() == 0
    # pip.txt is the note of the fake pip.
    assert {p.name for p in cloud.host().iterdir()} == {"copymit-run", "pip.txt"}
    assert (cloud.host() / "copymit-run").stat().st_mode & 0o777 == 0o700
    assert not (cloud.host() / "copymit-run/code/notes.py").exists()


def test_every_verb_may_be_repeated(cloud, capsys):
    for _ in range(2):
        assert cloud.do("create") == 0
    assert len(cloud.calls("create")) == 1
    for _ in range(2):
        assert cloud.do("setup") == 0
    assert (cloud.host() / "pip.txt").read_text().count("install") == 1
    for _ in range(2):
        assert cloud.train() == 0
    assert cloud.steps() == [0, 1, 2, 3, 4]
    for _ in range(2):
        assert cloud.do("stop") == 0
        assert cloud.do("status") == 0
        assert cloud.do("logs") == 0
    for _ in range(2):
        assert cloud.do("delete") == 0
    assert len(cloud.calls("delete")) == 1
    assert cloud.state["requests"] == {}
    for verb in ("status", "stop"):
        assert cloud.do(verb) == 0
    assert "ABSENT" in capsys.readouterr().out


def test_a_preempted_run_ends_as_a_finished_run(cloud, capsys):
    cloud.environment(STEPS="30", WAIT_AT="10")
    cloud.fail("ssh", once=str(cloud.middle), preempt=True)
    assert cloud.train("--spot") == 0
    assert cloud.steps() == list(range(30))
    assert len(cloud.calls("create")) == 2
    assert cloud.calls("delete")
    said = capsys.readouterr().err
    assert "start 2 of at most 21" in said
    starts = [w for w in cloud.calls("ssh") if " start " in str(w)]
    commands = {str(words).partition(" start ")[2] for words in starts}
    assert len(starts) == 2
    assert len(commands) == 1


@pytest.mark.parametrize("looks", [2, 0], ids=["preempted", "restarted"])
def test_a_run_that_the_machine_ends_is_no_failed_run(cloud, capsys, looks):
    cloud.environment(STEPS="20", WAIT_AT="10")
    cloud.fail("ssh", once=str(cloud.middle), warn=looks)
    assert cloud.train("--spot") == 0
    assert cloud.steps() == list(range(20))
    assert len(cloud.calls("create")) == (2 if looks else 1)
    assert "start 2 of at most 21" in capsys.readouterr().err


def test_a_slice_that_somebody_deletes_is_not_asked_for_again(cloud, capsys):
    cloud.environment(STEPS="20", WAIT_AT="10")
    cloud.fail("ssh", once=str(cloud.middle), preempt=True, then=["DELETING", "GONE"])
    assert cloud.train("--spot") == 1
    assert "error: run: somebody has deleted it" in capsys.readouterr().err
    assert len(cloud.calls("create")) == 1


@pytest.mark.parametrize("state", ["WAITING_FOR_RESOURCES", "PROVISIONING"])
def test_a_request_is_deleted_before_it_is_granted(cloud, capsys, state):
    cloud.fail("create", states=[state] * 3 + ["ACTIVE"])
    cloud.fail("describe", after=1, error="ERROR: RESOURCE_EXHAUSTED: a reason to end")
    assert cloud.do("create") == 1
    assert cloud.do("delete") == 0
    assert cloud.state["requests"] == {}
    refused = "PROVISIONING, cannot be deleted yet" in capsys.readouterr().err
    assert refused == (state == "PROVISIONING")


@pytest.mark.parametrize("end", ["SIGINT", "SIGKILL"], ids=["ctrl-c", "closed laptop"])
def test_a_run_outlives_its_follower_and_an_edit_and_is_followed_again(
    cloud, capsys, end
):
    cloud.environment(STEPS="40", SECS="0.3")
    code = (
        "import sys; from pathlib import Path; from launch import tpu; "
        f"tpu._ROOT = Path({str(cloud.project)!r}); sys.exit(tpu.main(sys.argv[1:]))"
    )
    words = [
        "run",
        "run",
        "--zone=us-west4-a",
        "--type=v5litepod-8",
        "--poll-secs=0.05",
    ]
    words += ["--", "train.py", "--workdir=gs://bucket/x"]
    follower = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=Path(tpu.__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    steps = cloud.folder / "buckets/bucket/x/steps"
    # Hosts start one after another: the first trains while the second has yet to begin.
    while not steps.exists() or not steps.read_text() or len(cloud.processes()) < 2:
        assert follower.poll() is None
        time.sleep(0.02)
    follower.send_signal(getattr(signal, end))
    said, _ = follower.communicate(timeout=600)
    if end == "SIGINT":
        assert follower.returncode == 130
        assert "runs on" in said
    assert len(cloud.processes()) == 2
    (cloud.project / "train.py").write_text("an edit that would not run")
    assert cloud.train() == 0
    assert cloud.steps() == list(range(40))
    assert len([w for w in cloud.calls("ssh") if " start " in str(w)]) == 1
    assert "the run is going on, with the code that it began" in capsys.readouterr().err


def test_code_that_could_not_be_installed_is_replaced_by_what_was_there_before(cloud):
    setup_cfg = cloud.project / "setup.cfg"
    before = setup_cfg.read_text()
    assert cloud.do("create") == 0
    assert cloud.do("setup") == 0
    cloud.environment(PIP_CODE="1", COPYMIT_RETRY_SECS="0")
    setup_cfg.write_text("a typing mistake")
    assert cloud.do("setup") == 1
    setup_cfg.write_text(before)
    assert cloud.do("setup") == 0
    assert (cloud.host() / "copymit-run/code/setup.cfg").read_text() == before


def test_a_slice_of_several_that_the_service_replaces_is_waited_for(cloud):
    cloud.set(hosts=1)
    cloud.environment(STEPS="20", WAIT_AT="10")
    cloud.fail("ssh", once=str(cloud.middle), replace="run-1")
    assert cloud.train("--slices=2") == 0
    assert cloud.steps() == list(range(20))
    assert len(cloud.calls("create")) == 1
    assert not cloud.calls("delete")


def test_losses_are_borne_a_bounded_number_of_times(cloud, capsys):
    for after in (0, 1):
        cloud.fail("ssh", after=after, preempt=True)
    assert cloud.train("--spot", "--restarts=1") == 1
    assert len(cloud.calls("create")) == 2
    assert "error: run: SUSPENDING (by the service)" in capsys.readouterr().err


def test_the_whole_queue_is_waited_through(cloud, capsys):
    queue = ["CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    cloud.fail("create", states=queue)
    assert cloud.do("create") == 0
    said = re.findall(r" run: (\w+)$", capsys.readouterr().err, re.MULTILINE)
    assert said == queue


def test_a_request_that_fails_is_named_and_asked_for_again_next_time(cloud, capsys):
    message = "There is no more capacity in the zone us-west4-a"
    cloud.fail(
        "create", states=["PROVISIONING", "SUSPENDING", "FAILED"], message=message
    )
    assert cloud.do("create") == 1
    assert message in capsys.readouterr().err
    cloud.set(
        requests={"run": {**cloud.state["requests"]["run"], "states": ["FAILED"]}}
    )
    assert cloud.do("create") == 0
    assert len(cloud.calls("delete")) == 1
    assert len(cloud.calls("create")) == 2


def test_a_run_asks_again_when_there_was_no_capacity(cloud):
    cloud.fail("create", states=["PROVISIONING", "FAILED"], message="no more capacity")
    assert cloud.train("--spot") == 0
    assert len(cloud.calls("create")) == 2


def test_a_slice_that_is_just_going_is_waited_for(cloud):
    cloud.set(
        requests={
            "run": {
                "states": ["SUSPENDING", "SUSPENDING", "SUSPENDED"],
                "message": "",
                "type": "v5litepod-8",
                "nodes": {"run": "PREEMPTED"},
            }
        }
    )
    assert cloud.do("create") == 0
    assert cloud.state["requests"]["run"]["states"] == ["ACTIVE"]


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (
            "ERROR: (gcloud.compute.tpus.queued-resources.create) RESOURCE_EXHAUSTED: "
            "Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI' has been "
            "exceeded. Limit: 0 in zone us-west4-a.",
            "iam-admin/quotas",
        ),
        (
            "ERROR: (gcloud.compute.tpus.queued-resources.create) PERMISSION_DENIED: "
            "Permission 'tpu.nodes.create' denied",
            "roles of docs/tpu.md",
        ),
        (
            "ERROR: (gcloud.compute.tpus.queued-resources.create) INVALID_ARGUMENT: Cloud "
            "TPU received a bad request. the accelerator v5litepod-8 was not found in "
            "zone us-west4-a [EID: 0x5be9]",
            "accelerator-types list --zone",
        ),
        (
            "ERROR: (gcloud.compute.tpus.queued-resources.create) You do not currently "
            "have an active account selected.",
            "gcloud auth login",
        ),
    ],
)
def test_a_refusal_is_shown_with_the_way_out_and_not_repeated(
    cloud, capsys, error, advice
):
    cloud.fail("create", error=error)
    assert cloud.train() == 1
    said = capsys.readouterr().err
    assert error.split(": ", 2)[-1] in said
    assert advice in said
    assert len(cloud.calls("create")) == 1
    assert not cloud.calls("ssh")


def test_a_bucket_that_does_not_answer_is_found_before_a_slice_is_asked_for(
    cloud, capsys
):
    cloud.set(buckets=[])
    assert cloud.train() == 1
    assert "gs://bucket not found" in capsys.readouterr().err
    assert not cloud.calls("create")


def test_hosts_that_ssh_does_not_reach_at_first_are_asked_again(cloud, capsys):
    cloud.fail("ssh", down=[1])
    cloud.fail("scp", down=[0])
    cloud.fail("ssh", after=1, down=[1])
    assert cloud.train() == 0
    assert cloud.steps() == [0, 1, 2, 3, 4]
    said = capsys.readouterr().err
    assert "0 of 2 hosts answered (none); again: ssh: connect to host" in said
    assert "1 of 2 hosts answered (run-w-0)" in said
    assert (cloud.host(1) / "pip.txt").read_text().count("install") == 1


def test_a_slice_that_gcloud_leaves_out_without_an_error_is_set_up_later(cloud, capsys):
    cloud.set(hosts=1)
    cloud.fail("ssh", skip=["run-1"])
    cloud.fail("scp", after=1, skip=["run-0"])
    assert cloud.train("--slices=2") == 0
    assert cloud.steps() == [0, 1, 2, 3, 4]
    assert "1 of 2 hosts answered (run-0-w-0)" in capsys.readouterr().err


def test_ssh_that_breaks_while_a_run_is_followed_does_not_end_it(cloud):
    cloud.environment(STEPS="20")
    for after in (4, 5):
        cloud.fail("ssh", after=after, down=[0, 1])
    assert cloud.train() == 0
    assert cloud.steps() == list(range(20))
    assert len(cloud.calls("create")) == 1


def test_a_run_that_fails_on_one_host_is_ended_on_all_and_not_repeated(cloud, capsys):
    cloud.environment(CODE="{index}", STEPS="3")
    assert cloud.train() == 1
    said = capsys.readouterr().err
    assert "run-w-1: exit code 1: " in said
    assert "run-w-0" not in said.split("exit code 1")[0].splitlines()[-1]
    assert cloud.processes() == []
    assert len(cloud.calls("create")) == 1


def test_a_host_that_was_restarted_gets_the_command_again(cloud):
    cloud.environment(STEPS="20", WAIT_AT="10")
    assert cloud.do("create") == 0
    assert cloud.do("setup") == 0
    there = request.Cloud(Gcloud(), request.Pace(poll_secs=0.05))
    wanted = Slice("run", "us-west4-a", "v5litepod-8")
    command = ["python", "train.py", "--workdir=gs://bucket/x", "--distributed"]
    run = lifecycle.start(there, wanted, 2, command)
    while not cloud.middle.exists():
        time.sleep(0.05)
    note = cloud.host(1) / "copymit-run/runs" / run / "process"
    process, boot = note.read_text().split()
    note.write_text(f"{process} another-{boot}")
    with pytest.raises(request.SliceLost, match="a host was restarted"):
        lifecycle.follow(there, wanted, 2, run)
    assert cloud.train() == 0
    assert cloud.steps() == list(range(20))
    os.killpg(int(process), signal.SIGKILL)  # what a restart would have done


def test_a_run_is_stopped_with_its_checkpoint_saved(cloud, capsys):
    cloud.environment(SECS="30")
    assert cloud.do("create") == 0
    assert cloud.do("setup") == 0
    # Following is given up at the first look, as with Ctrl-C.
    cloud.fail("ssh", after=5, error="ERROR: PERMISSION_DENIED: ssh")
    assert cloud.train() == 1
    assert len(cloud.processes()) == 2
    assert cloud.do("status") == 0
    assert re.search(r"run-w-1 +\w+ +running +0 min", capsys.readouterr().out)
    assert cloud.do("stop") == 0
    assert cloud.processes() == []
    assert cloud.do("logs", "--lines=1") == 0
    assert capsys.readouterr().out == "== run-w-0\nsaved\n== run-w-1\nsaved\n"
    # For a follower elsewhere this is no loss: the run is not started again.
    there = request.Cloud(Gcloud(), request.Pace(poll_secs=0.01))
    wanted = Slice("run", "us-west4-a", "v5litepod-8")
    run = next(cloud.host().glob("copymit-run/runs/*/log")).parent.name
    assert lifecycle.follow(there, wanted, 2, run) == 143


def test_another_command_is_refused_while_one_runs(cloud, capsys):
    cloud.environment(SECS="30")
    cloud.fail("ssh", after=4, error="ERROR: PERMISSION_DENIED: ssh")
    assert cloud.train() == 1
    capsys.readouterr()
    assert cloud.do("run", "--", "train.py", "--workdir=gs://bucket/y") == 1
    assert "stop it first" in capsys.readouterr().err


def test_without_a_setup_there_is_nothing_to_stop_or_to_show(cloud, capsys):
    assert cloud.do("create") == 0
    assert cloud.do("stop") == 0
    assert "nothing runs" in capsys.readouterr().err
    assert cloud.do("status") == 0
    assert "run setup first" in capsys.readouterr().out
    assert cloud.do("logs") == 1
    assert "run setup first" in capsys.readouterr().err


def test_several_slices_are_one_run(cloud):
    cloud.set(hosts=1)
    assert cloud.train("--slices=2") == 0
    (create,) = cloud.calls("create")
    assert {"--node-count=2", "--node-prefix=run"} <= {*create}
    assert cloud.host(0, "run-0").exists()
    assert cloud.host(0, "run-1").exists()
    for verb in ("status", "logs", "stop", "delete"):  # which ask the cloud how many
        assert cloud.do(verb) == 0


def test_a_slice_of_another_type_under_this_name_is_refused(cloud, capsys):
    assert cloud.do("create") == 0
    assert cloud.do("create", "--type=v6e-4") == 1
    assert "v5litepod-8 and not v6e-4" in capsys.readouterr().err


def test_a_setup_that_fails_shows_why(cloud, capsys):
    cloud.environment(PIP_CODE="1", COPYMIT_RETRY_SECS="0")
    assert cloud.do("create") == 0
    assert cloud.do("setup") == 1
    assert "-m pip install" in capsys.readouterr().err


def test_secrets_travel_in_a_file_and_are_never_shown(cloud, capsys, tmp_path):
    secret = tmp_path / "secrets.env"
    secret.write_text("# of mine\nHF_TOKEN=hf_abcdef\n")
    assert cloud.train(f"--env-file={secret}") == 0
    log = next(cloud.host().glob("copymit-run/runs/*/log")).read_text()
    assert "True hf_abcdef" in log  # the stub prints what it got, on purpose
    assert (cloud.host() / "copymit-run/env").stat().st_mode & 0o777 == 0o600
    printed = capsys.readouterr()
    assert "hf_abcdef" not in printed.out + printed.err + json.dumps(cloud.calls())


def test_a_mistake_in_the_file_of_secrets_is_found_before_a_slice_is_asked_for(
    cloud, capsys, tmp_path
):
    secret = tmp_path / "secrets.env"
    for text in (None, "HF_TOKEN=hf_abcdef\nhf_ghijkl\n"):
        if text:
            secret.write_text(text)
        assert cloud.train(f"--env-file={secret}") == 1
    said = capsys.readouterr().err
    assert f"{secret}, line 2: expected KEY=VALUE" in said
    assert "ghijkl" not in said
    assert not cloud.calls()


def test_hosts_that_show_no_log_are_mentioned(cloud, capsys):
    assert cloud.train() == 0
    for down in ([1], [0, 1]):
        cloud.fail("ssh", down=down)
    assert cloud.do("logs", "--lines=1") == 0
    said = capsys.readouterr()
    assert said.out == "== run-w-0\nstep 4\n"
    assert "some hosts have not answered: ssh: connect to host" in said.err
    assert cloud.do("logs") == 1
    assert "no host has answered: ssh: connect to host" in capsys.readouterr().err


def test_a_slice_is_given_back_after_success_on_request(cloud):
    assert cloud.train("--delete") == 0
    assert cloud.state["requests"] == {}


def test_without_gcloud_the_way_to_it_is_shown(cloud, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(cloud.folder / "nowhere"))
    assert cloud.do("create") == 1
    assert "cloud.google.com/sdk/docs/install" in capsys.readouterr().err
