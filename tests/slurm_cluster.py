"""A real Slurm of one node for tests: munged, slurmctld and slurmd as children of this process, all they write in one folder."""

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


def missing() -> list[str]:
    """The programs that are not installed (Debian: slurm-wlm, munge)."""
    return [name for name in PROGRAMS if not shutil.which(name, path=PATH)]


def wait_for(condition: Callable[[], object], seconds: float = 60, what: str = "") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or condition}"
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

    def start(self, program: str, *options: str) -> subprocess.Popen:
        with open(self.folder / f"{program}.out", "ab") as output:
            command = [shutil.which(program, path=PATH), *options]
            return subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


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
    files = {"key-file": key, "socket": folder / "munge.socket"}
    files |= {f"{name}-file": folder / f"munged.{name}" for name in ("pid", "log", "seed")}
    daemons = [cluster.start("munged", "--foreground", "--force", *(f"--{name}={file}" for name, file in files.items()))]
    try:
        wait_for((folder / "munge.socket").exists, what=f"munged, see {folder}")
        daemons.append(cluster.start("slurmctld", "-D", "-c"))
        daemons.append(cluster.start("slurmd", "-D", "-N", host))
        wait_for(lambda: cluster.ask("sinfo", "--noheader", "--format=%t") == "idle", what=f"slurmctld and slurmd, see {folder}")
        yield cluster
        cluster.ask("scancel", f"--user={getpass.getuser()}")
        wait_for(lambda: not cluster.states(), what="the last tasks to end")
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
