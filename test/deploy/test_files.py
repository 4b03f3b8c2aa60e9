"""The files of deploy/ that only other systems run: checked by their schemas, and by each other."""

import os
import re
import shlex
import signal
import stat
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from deploy_helpers import wait_until
from helpers import ROOT
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from tools.option_tables import load_script

DEPLOY = ROOT / "deploy"
SERVED_FOLDERS = {"/app/datasets", "/app/results", "/app/weights"}


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


# --- Docker ---


def test_compose_and_image_agree() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    volumes = re.search(r"^VOLUME (.*)$", dockerfile, re.M)
    assert volumes and set(yaml.safe_load(volumes[1])) == SERVED_FOLDERS
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["iddm"]
    assert {volume.split(":")[1] for volume in service["volumes"]} == SERVED_FOLDERS
    assert service["read_only"] and service["tmpfs"] == ["/tmp"]
    more = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text())["services"]
    assert set(more) == {"iddm"}


def test_the_dockerfile_is_tidy() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")  # where pip puts it
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# --- Kubernetes ---


def test_the_manifests_are_valid() -> None:
    for document in documents("kubernetes.yaml"):
        kubernetes_validate.validate(document, desired_version="1.28", strict=True)
        kubernetes_validate.validate(
            document, desired_version=kubernetes_validate.latest_version(), strict=True
        )


def test_haproxy_knows_every_pod() -> None:
    parts = {
        (part["kind"], part["metadata"]["name"]): part for part in documents("kubernetes.yaml")
    }
    servers = parts["StatefulSet", "iddm"]["spec"]
    first = servers["ordinals"]["start"]
    numbers = range(first, first + servers["replicas"])
    container = parts["Deployment", "iddm-haproxy"]["spec"]["template"]["spec"]["containers"][0]
    addresses = {variable["name"]: variable["value"] for variable in container["env"]}
    configuration = (DEPLOY / "haproxy.cfg").read_text()
    for number in numbers:
        service = f"iddm-r{number}"
        assert addresses[f"R{number}"] == f"{service}:8000"
        selector = parts["Service", service]["spec"]["selector"]
        assert selector == {"statefulset.kubernetes.io/pod-name": f"iddm-{number}"}
        assert f"backend jobs_of_r{number}" in configuration
        assert f"path_sub /r{number}-" in configuration


def test_pods_may_write_what_the_container_may() -> None:
    (servers,) = (part for part in documents("kubernetes.yaml") if part["kind"] == "StatefulSet")
    pod = servers["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    mounts = container["volumeMounts"]
    written = {mount["mountPath"] for mount in mounts if not mount.get("readOnly", False)}
    assert written == {"/app/results", "/tmp", "/dev/shm"}
    grace = load_script("serve").build_parser().parse_args([]).grace
    assert pod["terminationGracePeriodSeconds"] > grace


def test_the_training_job_is_valid() -> None:
    (document,) = documents("trainjob.yaml")
    understood = TrainerV1alpha1TrainJob.from_dict(document).to_dict()
    assert unknown_keys(document, understood) == []
    script = document["spec"]["trainer"]["args"][0]
    arguments = re.search(r"tools/train\.py (.*) \$resume", script)
    assert arguments is not None
    load_script("train").build_parser().parse_args(shlex.split(arguments[1]))


def unknown_keys(given: object, understood: object, place: str = "") -> list[str]:
    """What was written that the schema does not know."""
    if isinstance(given, list):
        assert isinstance(understood, list) and len(given) == len(understood), place
        pairs = zip(given, understood, strict=True)
        return [key for one, two in pairs for key in unknown_keys(one, two, f"{place}[]")]
    if not isinstance(given, dict) or not isinstance(understood, dict):
        return []
    unknown = [f"{place}.{name}" for name in given if name not in understood]
    for name in set(given) & set(understood):
        unknown += unknown_keys(given[name], understood[name], f"{place}.{name}")
    return unknown


# --- Slurm, with stand-ins for its commands ---

STAND_INS = {
    "scontrol": 'echo "scontrol $*" >> calls; [ "$1" = show ] && printf "n1\\nn2\\n"; true',
    "scancel": 'echo "scancel $*" >> calls; kill "$(cat step)"',
    # The step: it notes how it was called, and ends after a while when it is told to.
    "srun": 'echo "srun $*" >> calls; echo $$ > step; trap "sleep 0.5; exit 143" TERM; '
    "[ -e short ] && exit 0; while true; do sleep 0.1; done",
}


class Slurm:
    """deploy/slurm.sh as a job in `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name, text in STAND_INS.items():
            file = folder / "bin" / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"#!/bin/bash\n{text}\n")
            file.chmod(file.stat().st_mode | stat.S_IXUSR)

    def start(self, *options: str) -> subprocess.Popen:
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
        job |= {"SLURM_CPUS_PER_TASK": "16", "SLURM_GPUS_ON_NODE": "4"}
        job["PATH"] = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        command = ["bash", str(DEPLOY / "slurm.sh"), "flowers", *options]
        return subprocess.Popen(command, cwd=self.folder, env={**os.environ, **job})

    @property
    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


class TestSlurm:
    def test_when_the_time_is_up_the_run_saves_and_the_job_is_queued_again(self, slurm) -> None:
        job = slurm.start("--image_size", "64")
        wait_until((slurm.folder / "step").exists, 10)
        job.send_signal(signal.SIGTERM)
        assert job.wait(20) == 143
        assert slurm.calls[-2:] == ["scancel --signal=TERM 7", "scontrol requeue 7"]
        step = slurm.calls[1]
        assert "--nnodes 2 --nproc_per_node 4" in step
        assert "--rdzv_endpoint n1:29500 tools/train.py --run_name flowers --image_size 64" in step
        assert "--resume" not in step

    def test_it_resumes_where_there_is_a_checkpoint(self, slurm) -> None:
        (slurm.folder / "results" / "flowers").mkdir(parents=True)
        (slurm.folder / "results" / "flowers" / "ckpt_last.pt").touch()
        (slurm.folder / "short").touch()
        assert slurm.start("--image_size", "64").wait(20) == 0
        assert slurm.calls[-1].endswith("--run_name flowers --image_size 64 --resume")

    @pytest.mark.parametrize("path", [["--result_path", "my runs"], ["--result_path=my runs"]])
    @pytest.mark.parametrize(
        "pretrain",
        [
            ["--pretrain", "--pretrain_path", "w.pt"],
            ["--pretrain", "--pretrain_path=w.pt"],
            ["--pretrain", "True", "--pretrain_path", "w.pt"],
        ],
    )
    def test_it_resumes_a_run_that_began_with_other_weights(self, slurm, path, pretrain) -> None:
        (slurm.folder / "short").touch()
        options = [*pretrain, *path, "--image_size", "64"]
        assert slurm.start(*options).wait(20) == 0
        begun = f"{' '.join(path)} --image_size 64"
        assert slurm.calls[-1].endswith(f"--run_name flowers {begun} {' '.join(pretrain)}")
        (slurm.folder / "my runs" / "flowers").mkdir(parents=True)
        (slurm.folder / "my runs" / "flowers" / "ckpt_prev.pt").touch()
        assert slurm.start(*options).wait(20) == 0
        assert slurm.calls[-1].endswith(f"--run_name flowers {begun} --resume")
