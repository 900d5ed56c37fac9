"""A real Slurm of one node for tests: munged, slurmctld and slurmd, all they write in one folder.

They and their tasks are alone in a namespace of processes: the kernel ends them all with its first one, and that ends when the
pipe from this process does, which the kernel closes however this process ends.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "squeue", "scontrol", "sinfo")
NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
DAEMONS = """
munged --foreground --force --key-file="$1/munge.key" --socket="$1/munge.socket" --pid-file="$1/munge.pid" \\
  --log-file="$1/munge.log" --seed-file="$1/munge.seed" &
until [ -S "$1/munge.socket" ]; do sleep 0.05; done
slurmctld -D -c &
slurmd -D -N "$2" &
read -r _
"""
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where Debian has the daemons
CONFIG = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2
MpiDefault=none
ReturnToService=2
KillWait=5
MaxArraySize=101
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no Slurm here, "" if there can."""
    if lacking := [name for name in PROGRAMS if not shutil.which(name, path=PATH)]:
        return f"{', '.join(lacking)} not installed; Debian: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "a namespace for Slurm's daemons: root alone may make one"
    tried = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"no namespace for Slurm's daemons: {tried.stderr.strip()}"


def wait_for(condition: Callable[[], object], seconds: float = 60, what: str = "", logs: Path | None = None) -> None:
    """AssertionError where it does not come true, with what the logs in the folder `logs` say."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            said = [file.read_text()[-1000:] for file in sorted(logs.glob("*.log"))] if logs else []
            raise AssertionError("\n".join([f"not within {seconds} s: {what or condition}", *said]))
        time.sleep(0.05)


class Cluster:
    """environment: for whatever is to talk to this Slurm. `ask` runs one of Slurm's programs and returns what it prints."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": PATH}

    def ask(self, *words: str) -> str:
        settings = {"env": self.environment, "capture_output": True, "text": True, "timeout": 60}
        return subprocess.run(words, check=False, **settings).stdout.strip()

    def states(self) -> dict[str, str]:
        """Of every task in the queue: {"12_3": "RUNNING"}."""
        return dict(line.split() for line in self.ask("squeue", "--noheader", "--array", "--format=%i %T").splitlines())


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Cluster]:
    """folder: of this test alone, on a short path (munge's socket: 107 characters). Nothing runs any more at the end."""
    cluster, host = Cluster(folder), socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], other.getsockname()[1]
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host, user=getpass.getuser(), ports=ports))
    command = [*NAMESPACE, "bash", "-c", DAEMONS, "-", str(folder), host]
    with open(folder / "daemons.log", "wb") as output:
        settings = {"env": cluster.environment, "stdin": subprocess.PIPE, "stdout": output, "stderr": output}
        daemons = subprocess.Popen(command, start_new_session=True, **settings)
    state = ("sinfo", "--noheader", "--format=%t")
    ready = lambda: (folder / "munge.socket").exists() and cluster.ask(*state) == "idle"  # noqa: E731
    try:
        wait_for(ready, what="Slurm ready", logs=folder)
        yield cluster
    finally:
        daemons.stdin.close()
        daemons.wait()
