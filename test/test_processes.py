"""Several processes train as one, to 1e-10 in float64; and what happens when one of them fails."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TINY, metrics, wait_for_step

from utils.runs.files import read_checkpoint

SCRIPT = str(ROOT / "test/helper_float64.py")


def command(images, results, name, *options, script=SCRIPT):
    place = [
        "--dataset_path",
        images,
        "--result_path",
        results,
        "--run_name",
        name,
        "--use_gpu",
        "-1",
    ]
    return [
        str(part) for part in (sys.executable, script, *place, *TINY, "--vis", "False", *options)
    ]


def train(images, results, name, processes, batch, *options):
    """A run whose global batch is 8, on this many processes."""
    spread = ["--distributed", "--world_size", processes] if processes > 1 else []
    options = ["--batch_size", batch, "--grad_accum", 8 // (batch * processes), *spread, *options]
    done = subprocess.run(
        command(images, results, name, *options), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def differences(a: Path, b: Path) -> float:
    """The largest difference of losses, weights and EMA between two runs."""
    one, two = read_checkpoint(a / "ckpt_last.pt"), read_checkpoint(b / "ckpt_last.pt")
    assert one["state"] == two["state"] and one["network"]["conv_in.weight"].dtype == torch.float64
    gaps = [
        (one[part][key] - two[part][key]).abs().max().item()
        for part in ("network", "ema")
        for key in one[part]
    ]
    rows = list(zip(metrics(a), metrics(b), strict=True))
    return max(
        gaps
        + [abs(float(x[key]) - float(y[key])) for x, y in rows for key in ("loss", "grad_norm")]
    )


def test_two_processes_equal_one_in_float64(images, tmp_path):
    train(images, tmp_path, "one", 1, 8, "--epochs", 2, "--flip")
    train(images, tmp_path, "two", 2, 2, "--epochs", 2, "--flip")
    assert differences(tmp_path / "one", tmp_path / "two") < 1e-10


def shared_gradients(folder: Path, compression: str) -> tuple[list, list]:
    """What each of two processes had for itself, and what they agreed on."""
    run = [sys.executable, str(ROOT / "test/helper_gradients.py"), str(folder), compression]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    return [each["own"] for each in found], [each["shared"] for each in found]


@pytest.mark.fault
def test_processes_exchange_gradients_as_they_are_or_in_bf16(tmp_path):
    (first, second), shared = shared_gradients(tmp_path, "none")
    mean = (first + second) / 2
    assert torch.equal(*shared) and (shared[0] - mean).abs().max() < 1e-6 * mean.abs().max()

    (first, second), shared = shared_gradients(tmp_path, "bf16")
    rounded = first.bfloat16() / 2 + second.bfloat16() / 2
    assert shared[0].dtype == torch.float32 and not torch.equal(first, second)
    assert torch.equal(*shared) and torch.equal(shared[0], rounded.float())


@pytest.mark.fault
def test_a_resumed_run_must_say_how_gradients_are_exchanged(images, tmp_path):
    compressed = ["--gradient_compression", "bf16"]
    train(images, tmp_path, "one", 1, 8, "--epochs", 1)
    train(images, tmp_path, "two", 2, 4, "--epochs", 1, *compressed)
    assert 1e-9 < differences(tmp_path / "one", tmp_path / "two") < 0.05
    resume = ["--epochs", 2, "--batch_size", 4, "--distributed", "--resume"]
    run = command(images, tmp_path, "two", *resume)
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "gradient_compression bf16 before, none now" in done.stderr
    train(images, tmp_path, "two", 2, 4, "--epochs", 2, "--resume", *compressed)


@pytest.mark.fault
@pytest.mark.parametrize("count", [13, 3])
def test_processes_equal_each_other_in_float64(images, tmp_path, count):
    """50 steps; a size that neither batch nor processes divide, and one with fewer images than
    processes.
    """
    for file in sorted(images.rglob("*.png"))[count:]:
        file.unlink()
    for folder in images.iterdir():
        if not list(folder.iterdir()):
            folder.rmdir()
    epochs = ["--flip", "--epochs", 25 if count == 13 else 50]
    train(images, tmp_path, "one", 1, 8, *epochs)
    for name, processes, batch in [
        ("accumulated", 1, 2),
        ("two", 2, 4),
        ("two-accumulated", 2, 1),
        ("four", 4, 2),
    ]:
        train(images, tmp_path, name, processes, batch, *epochs)
        assert differences(tmp_path / "one", tmp_path / name) < 1e-10
    assert len(metrics(tmp_path / "one")) == 50


@pytest.mark.fault
def test_two_processes_follow_one_for_50_steps_in_float32(images, tmp_path):
    for name, spread in (
        ("one", ["--batch_size", 8]),
        ("two", ["--batch_size", 4, "--distributed"]),
    ):
        run = command(
            images,
            tmp_path,
            name,
            "--epochs",
            25,
            "--flip",
            *spread,
            script=ROOT / "tools/train.py",
        )
        subprocess.run(
            run, check=True, timeout=120, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    one, two = ([float(row["loss"]) for row in metrics(tmp_path / name)] for name in ("one", "two"))
    assert len(one) == 50 and max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-4


@pytest.mark.fault
def test_a_run_changes_its_number_of_processes_inside_an_epoch(images, tmp_path):
    """2, then 1, then 4 processes, by resume, at steps 5 and 9 of epochs of 2: equal to one process
    throughout.
    """
    for file in sorted((ROOT / "datasets/demo/coat").iterdir())[:30]:
        shutil.copy(file, images / "bag" / f"coat{file.name}")
    options = [
        "--epochs",
        3,
        "--log_interval",
        1,
        "--save_every_steps",
        1,
    ]  # 43 images, 6 steps an epoch
    train(images, tmp_path, "one", 1, 8, *options)
    for processes, until in ((2, 4), (1, 9)):
        batch = ["--batch_size", 8 // processes, "--resume" if processes == 1 else "--flip=False"]
        spread = ["--distributed", "--world_size", processes] if processes > 1 else []
        process = subprocess.Popen(
            command(images, tmp_path, "mixed", *options, *batch, *spread),
            start_new_session=True,
            stderr=subprocess.PIPE,
        )
        wait_for_step(tmp_path / "mixed", until)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    train(images, tmp_path, "mixed", 4, 2, *options, "--resume")
    assert differences(tmp_path / "one", tmp_path / "mixed") < 1e-10


# --- torchrun on two machines, which network namespaces stand for ---


@pytest.fixture
def machines():
    """Two network namespaces and a cable between them: [(name, device, address), ...]. Needs root
    and iproute2.
    """
    names = [(f"iddm{i}-{os.getpid()}", f"cable{i}", f"10.77.0.{i + 1}") for i in range(2)]

    def ip(*words):
        subprocess.run(["ip", *words], check=True)

    for name, *_ in names:
        ip("netns", "add", name)
    ends = [["name", device, "netns", name] for name, device, _ in names]
    try:
        ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for name, device, address in names:
            ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
            for each in ("lo", device):
                ip("-n", name, "link", "set", each, "up")
        yield names
    finally:
        for name, *_ in names:
            ip("netns", "del", name)


def torchrun(machines, run, *second):
    """An agent with one process on each machine, the first of which holds the rendezvous; options
    of the second.
    """
    agents = []
    for i, (name, device, address) in enumerate(machines):
        launcher = [
            "ip",
            "netns",
            "exec",
            name,
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nnodes",
            "2",
        ]
        launcher += [
            "--nproc_per_node",
            "1",
            "--rdzv_id",
            "a",
            "--rdzv_backend",
            "c10d",
            "--local_addr",
            address,
        ]
        launcher += [
            "--rdzv_endpoint",
            f"{machines[0][2]}:29400",
            "--rdzv_conf",
            f"is_host={1 - i}",
        ]
        agents.append(
            subprocess.Popen(
                [*launcher, *run[1:], *map(str, second if i else ())],
                env={**os.environ, "GLOO_SOCKET_IFNAME": device},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return agents


def processes_of(results: Path) -> list[int]:
    """The training processes that write below `results`, without torchrun's own."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if (
            str(results).encode() in words
            and b"torch.distributed.run" not in words
            and alive(int(process.name))
        ):
            found.append(int(process.name))
    return found


def gone(results: Path, seconds: float) -> bool:
    """Whether all training processes have ended after so long."""
    end = time.monotonic() + seconds
    while processes_of(results) and time.monotonic() < end:
        time.sleep(0.2)
    return not processes_of(results)


@pytest.mark.fault
def test_torchrun_on_two_machines(images, tmp_path, machines):
    train(images, tmp_path, "one", 1, 8, "--epochs", 2)
    agents = torchrun(machines, command(images, tmp_path, "two", "--epochs", 2, "--batch_size", 4))
    assert [agent.wait(240) for agent in agents] == [0, 0]
    assert differences(tmp_path / "one", tmp_path / "two") < 1e-10


@pytest.mark.fault
def test_machines_that_were_told_different_things(images, tmp_path, machines):
    agents = torchrun(
        machines, command(images, tmp_path, "a", "--epochs", 3), "--lr", 0.1, "--epochs", 4
    )
    errors = [agent.communicate(timeout=60)[1] for agent in agents]
    assert all(agent.returncode for agent in agents)
    assert (
        sum(
            error.count("error: the processes do not agree: epochs [3, 4], lr [None, 0.1]")
            for error in errors
        )
        == 1
    )
    assert not (tmp_path / "a/metrics.csv").exists()


@pytest.mark.fault
def test_a_machine_that_is_cut_off(images, tmp_path, machines):
    """Both sides end after the timeout, and what was saved goes on."""
    run = command(images, tmp_path, "a", "--epochs", 5000, "--batch_size", 4, "--timeout", 6)
    agents = torchrun(machines, run)
    try:
        wait_for_step(tmp_path / "a", 12, 120)
        assert len(processes_of(tmp_path)) == 2
        subprocess.run(
            ["ip", "-n", machines[1][0], "link", "set", machines[1][1], "down"], check=True
        )
        begun = time.monotonic()
        assert gone(tmp_path, 6 + 15) and time.monotonic() - begun > 4
        error = agents[0].communicate(timeout=30)[1]
        assert (
            agents[0].returncode != 0 and "rank 0 ended: the others did not answer for 6 s" in error
        )
    finally:
        for agent in agents:
            agent.kill()
    done = read_checkpoint(tmp_path / "a/ckpt_last.pt")["state"]["epoch"]
    train(images, tmp_path, "a", 1, 8, "--epochs", done + 1, "--resume")


@pytest.mark.fault
def test_a_killed_torchrun_leaves_no_process(images, tmp_path, machines):
    agents = torchrun(machines, command(images, tmp_path, "a", "--epochs", 5000, "--batch_size", 4))
    wait_for_step(tmp_path / "a", 12, 120)
    assert len(processes_of(tmp_path)) == 2
    for agent in agents:
        agent.kill()
    assert gone(tmp_path, 30)


# --- Two machines, which processes stand for that another launcher has started ---


def start_as_machines(
    images, results, *options, second=(), script=ROOT / "tools/train.py", slow_read_of_second=0
):
    """A process on each of two machines, as srun or mpirun start them; options of the second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = ["--dataset_path", images, "--result_path", results, "--run_name", "a"]
    place += ["--use_gpu", "-1", "--vis", "False", "--distributed"]
    facts = {"WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    facts |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, (script, *place, *options, *(second if rank else ())))],
            env={**os.environ, **{name: str(value) for name, value in facts.items()}}
            | {"RANK": str(rank), "SLOW_READ": str(rank * slow_read_of_second)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def ends_of(processes, timeout=120):
    """The exit status of each, and what both said."""
    said = [process.communicate(timeout=timeout)[1] for process in processes]
    return [process.returncode for process in processes], "".join(said)


def test_processes_that_another_launcher_started(images, tmp_path):
    processes = start_as_machines(images, tmp_path, *TINY, "--epochs", 1, "--batch_size", 4)
    statuses, said = ends_of(processes)
    assert statuses == [0, 0], said
    assert read_checkpoint(tmp_path / "a/ckpt_last.pt")["args"]["global_batch"] == 8


def test_machines_with_other_images(images, tmp_path):
    fewer = tmp_path / "fewer"
    shutil.copytree(images, fewer)
    next(fewer.rglob("*.png")).unlink()
    options = [*TINY, "--epochs", 1, "--batch_size", 2]
    statuses, said = ends_of(
        start_as_machines(images, tmp_path, *options, second=["--dataset_path", fewer])
    )
    assert statuses == [2, 2], said
    assert "the processes do not agree: images [13, 12]" in said and "Traceback" not in said


@pytest.mark.fault
@pytest.mark.parametrize("second", [["--minutes", 1], ["--epochs", 100], ["--amp", "True"]])
def test_machines_whose_recipes_would_differ(images, tmp_path, second):
    """What depends on the options is shared with the others only afterwards."""
    options = ["--image_size", 8, "--epochs", 1, "--amp", "False"]
    statuses, said = ends_of(start_as_machines(images, tmp_path, *options, second=second))
    assert statuses == [2, 2], said
    assert "the processes do not agree" in said and "Traceback" not in said


@pytest.mark.fault
def test_machines_that_begin_with_other_weights(images, tmp_path):
    files = []
    for seed in (1, 2):
        run = command(images, tmp_path, f"w{seed}", "--epochs", 1, "--seed", seed)
        subprocess.run(run, check=True, capture_output=True)
        files.append(tmp_path / f"w{seed}" / "ema_last.pt")
    options = [*TINY, "--epochs", 1, "--pretrain", "--pretrain_path"]
    processes = start_as_machines(
        images, tmp_path, *options, files[0], second=["--pretrain_path", files[1]]
    )
    statuses, said = ends_of(processes)
    assert statuses == [2, 2] and "do not agree: the weights to start from" in said, said


@pytest.mark.fault
def test_a_machine_that_is_lost_while_the_other_waits(images, tmp_path):
    """Nothing but its silence tells of it: it is killed while it decodes."""
    options = ["--cache", "ram", "--timeout", 5, *TINY, "--epochs", 1]
    script = ROOT / "test/helper_slow_read.py"
    first, second = start_as_machines(
        images, tmp_path, *options, script=script, slow_read_of_second=60
    )
    time.sleep(12)  # longer than the timeout, which does not count for what is slow alone
    assert first.poll() is None and second.poll() is None
    second.kill()
    second.communicate()
    begun = time.monotonic()
    statuses, said = ends_of([first], timeout=60)
    assert statuses == [1] and "the others did not answer for 5 s" in said, said
    assert 4 < time.monotonic() - begun < 15


def test_a_machine_that_does_not_come(images, tmp_path):
    options = [*TINY, "--epochs", 1, "--timeout", 2]
    first, second = start_as_machines(images, tmp_path, *options)
    second.kill()
    second.communicate()
    statuses, said = ends_of([first])
    assert statuses == [1] and "error: the processes did not meet at 127.0.0.1:" in said, said
    assert "Traceback" not in said


# --- Failures ---


def start_two(images, results, *options, script=ROOT / "tools/train.py"):
    """A long run on two processes that has made 10 steps: the launcher and the process numbers of
    the ranks.
    """
    options = ["--epochs", 5000, "--distributed", "--world_size", 2, "--batch_size", 2, *options]
    launcher = subprocess.Popen(
        command(images, results, "a", *options, script=script),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_step(results / "a", 10, 120)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    ranks = [
        int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(ranks) == 2
    return launcher, ranks


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.fault
def test_a_mistake_is_said_once(images, tmp_path):
    run = command(
        images, tmp_path, "a", "--distributed", "--main_gpu", 1, script=ROOT / "tools/train.py"
    )
    for options, sentence in [
        (["--num_classes", 2], "error: --num_classes 2, but"),  # all find it
        (
            ["--run_name", "b"],
            f"error: {tmp_path / 'b'} holds files of an earlier run",
        ),  # the main process alone
    ]:
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / "metrics.csv").write_text("step\n1\n")
        done = subprocess.run(
            [*run, *map(str, options)], capture_output=True, text=True, timeout=60
        )
        assert (
            done.returncode == 2
            and done.stderr.startswith(sentence)
            and done.stderr.count("\n") == 1
        ), done.stderr


@pytest.mark.parametrize("processes", [1, 2])
def test_where_memory_runs_out_a_sentence_says_what_helps(images, tmp_path, processes):
    """The run has saved, and goes on with what the sentence says."""
    spread = ["--distributed", "--world_size", processes] if processes > 1 else []
    run = command(
        images, tmp_path, "a", "--epochs", 4, *spread, script=ROOT / "test/helper_little_memory.py"
    )
    environment = {**os.environ, "LITTLE_MEMORY": "3"}
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 1, done.stderr
    error = done.stderr[done.stderr.index("error: ") :]
    assert "Traceback" not in done.stderr and error.count("error: ") == 1
    advice = "a smaller --batch_size with as much more --grad_accum gives the same result"
    assert error.startswith(f"error: memory has run out; {advice} (")
    assert read_checkpoint(tmp_path / "a/ckpt_last.pt")["state"]["step"] == 3
    smaller = ["--batch_size", 2, "--grad_accum", 2, "--resume"]
    subprocess.run([*run, *map(str, smaller)], check=True, timeout=120, capture_output=True)


def test_a_killed_rank_ends_the_run_and_is_named(images, tmp_path):
    launcher, ranks = start_two(images, tmp_path)
    begun = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    error = launcher.communicate(timeout=60)[1]
    assert time.monotonic() - begun < 15
    assert launcher.returncode == 1 and not any(map(alive, ranks))
    assert error.count("error: ") == 1 and "error: rank 1 was killed by SIGKILL" in error
    done = read_checkpoint(tmp_path / "a/ckpt_last.pt")["state"]["epoch"]
    resume = command(
        images,
        tmp_path,
        "a",
        "--epochs",
        done + 1,
        "--batch_size",
        4,
        "--resume",
        "--allow_changes",
        script=ROOT / "tools/train.py",
    )
    subprocess.run(
        resume, check=True, timeout=60, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.mark.fault
def test_a_stopped_rank_ends_the_run_after_the_timeout(images, tmp_path):
    launcher, ranks = start_two(images, tmp_path, "--timeout", 6)
    begun = time.monotonic()
    os.kill(ranks[1], signal.SIGSTOP)
    error = launcher.communicate(timeout=60)[1]
    assert 5 < time.monotonic() - begun < 6 + 15
    assert (
        launcher.returncode == 1 and not any(map(alive, ranks)) and "rank 1 did not answer" in error
    )


@pytest.mark.fault
def test_a_preview_may_last_longer_than_the_timeout(images, tmp_path):
    spread = [
        "--distributed",
        "--world_size",
        2,
        "--batch_size",
        2,
        "--epochs",
        1,
        "--main_gpu",
        1,
        "--timeout",
        3,
    ]
    preview = ["--vis", "True", "--num_vis", 2, "--sample", "ddpm", "--sample_steps", 1000]
    run = command(images, tmp_path, "a", *spread, *preview, script=ROOT / "tools/train.py")
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "a/log.txt").read_text()
    times = [
        time.mktime(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S"))
        for line in log.splitlines()
        if line[:2] == "20"
    ]
    assert (tmp_path / "a/samples/epoch_0001.png").exists() and times[-1] - times[0] > 4


@pytest.mark.fault
def test_a_killed_launcher_leaves_no_process(images, tmp_path, monkeypatch):
    """With steps of 8 seconds: the processes save before they end, and do not wait for
    --log_interval.
    """
    monkeypatch.setenv("SLOW_STEP", "8")
    launcher, ranks = start_two(images, tmp_path, script=SCRIPT)
    launcher.kill()
    launcher.wait(10)
    end = time.monotonic() + 30
    while any(map(alive, ranks)) and time.monotonic() < end:
        time.sleep(0.2)
    assert not any(map(alive, ranks))
    step = int(metrics(tmp_path / "a")[-1]["step"])
    assert read_checkpoint(tmp_path / "a/ckpt_last.pt")["state"]["step"] == step
    assert "stopped, saved" in (tmp_path / "a/log.txt").read_text()


@pytest.mark.fault
def test_the_process_at_fault_is_named_where_the_others_are_busy(images, tmp_path, monkeypatch):
    monkeypatch.setenv("SLOW_STEP", "40")
    monkeypatch.setenv("SLOW_RANK", "0")
    launcher, ranks = start_two(images, tmp_path, script=SCRIPT)
    begun = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    error = launcher.communicate(timeout=60)[1]
    assert time.monotonic() - begun < 15 and not any(map(alive, ranks))
    assert error.count("error: ") == 1 and "error: rank 1 was killed by SIGKILL" in error


@pytest.mark.fault
def test_weights_that_drift_apart_stop_the_run(images, tmp_path):
    run = command(images, tmp_path, "a", "--epochs", 50, "--distributed", "--batch_size", 2)
    done = subprocess.run(
        run, env={**os.environ, "DRIFT_RANK": "1"}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "the processes hold different weights" in done.stderr
    assert (
        read_checkpoint(tmp_path / "a/ckpt_last.pt")["state"]["step"] == 0
    )  # nothing was saved after it


@pytest.mark.fault
def test_signals_save_on_all_processes(images, tmp_path):
    for number in (signal.SIGINT, signal.SIGTERM):
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        launcher, ranks = start_two(images, tmp_path)
        os.killpg(launcher.pid, number)  # as a terminal does
        launcher.communicate(timeout=60)
        assert launcher.returncode == 128 + number and not any(map(alive, ranks))
        state = read_checkpoint(tmp_path / "a/ckpt_last.pt")["state"]
        assert state["step"] == int(metrics(tmp_path / "a")[-1]["step"])


@pytest.mark.fault
@pytest.mark.parametrize("seconds", [0.5, 1.5, 2.5, 3.5])
def test_ctrl_c_while_the_processes_start(images, tmp_path, seconds):
    run = command(
        images, tmp_path, "a", "--epochs", 5000, "--distributed", script=ROOT / "tools/train.py"
    )
    launcher = subprocess.Popen(run, stderr=subprocess.PIPE, text=True, start_new_session=True)
    time.sleep(seconds)
    os.killpg(launcher.pid, signal.SIGINT)
    error = launcher.communicate(timeout=30)[1]
    assert launcher.returncode in (130, -signal.SIGINT) and "error: " not in error
    assert "Traceback" not in error or seconds < 1  # before main() Python itself answers


@pytest.mark.fault
@pytest.mark.parametrize("seconds", [1, 1.5, 2, 2.5, 3, 3.5])
def test_a_launcher_killed_while_the_processes_start(images, tmp_path, seconds):
    run = command(
        images, tmp_path, "a", "--epochs", 5000, "--distributed", script=ROOT / "tools/train.py"
    )
    launcher = subprocess.Popen(run, stderr=subprocess.DEVNULL, start_new_session=True)
    time.sleep(seconds)
    launcher.kill()
    launcher.wait(10)
    end = time.monotonic() + 30
    while any_in_group(launcher.pid) and time.monotonic() < end:
        time.sleep(0.2)
    assert not any_in_group(launcher.pid)


def any_in_group(group: int) -> bool:
    """Whether a process of this process group runs."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, its_group = (process / "stat").read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            return True
    return False


@pytest.mark.fault
def test_nan_on_one_rank_stops_all_at_the_same_step(images, tmp_path):
    options = [
        "--epochs",
        50,
        "--distributed",
        "--world_size",
        2,
        "--batch_size",
        2,
        "--log_interval",
        1,
    ]
    env = {**os.environ, "NAN_RANK": "1"}
    run = command(images, tmp_path, "a", *options)
    done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=120)
    assert (
        done.returncode == 2
        and done.stderr.count("error: ") == 1
        and "Traceback" not in done.stderr
    )
    step = int(done.stderr.split("error: step ")[1].split(":")[0])
    contents = read_checkpoint(tmp_path / "a/ckpt_last.pt")
    assert contents["state"]["step"] < step and all(
        w.isfinite().all() for w in contents["network"].values()
    )
    log = (tmp_path / "a/log.txt").read_text()
    assert f"step {step}: the loss is nan" in log and ".png" in log.split("The images: ")[1]
