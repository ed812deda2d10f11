"""A host to ssh to, made of this machine: a real sshd that sees an account and processes of its own.

Ray's launcher stops "every Ray on the host" and keeps its state at fixed paths. Here the host is a mount and
a process namespace, so nothing outside of it is seen, stopped or left behind. Needs root and util-linux.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

# The first process of the host. It tells its number as seen from outside, hides what is to be private, and
# stays to collect orphans.
START = """\
set -e
read -r pid rest < /proc/self/stat
mount --make-rprivate /
mount -t proc proc /proc
while read -r private public; do mount --bind "$private" "$public"; done < mounts
"$1" -D -f sshd_config -E sshd.log &
echo "$pid" > pid
wait
"""

SSHD_CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/home/.ssh/authorized_keys
PidFile none
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
SetEnv {environment}
"""

# As Debian's: it ends here for a shell that is not interactive.
BASHRC = """\
case $- in *i*) ;; *) return ;; esac
export PATH={python}:$PATH
"""


class Host:
    """``run`` runs a command there as a user does in a terminal; ``ssh 127.0.0.1`` in it leads back there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.log = folder, folder / "home", folder / "sshd.log"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._make_account(port)
        self._make_mounts()
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd's own, see sshd(8)
        environment = " ".join(f'"{name}={value}"' for name, value in _machine_settings().items())
        config = SSHD_CONFIG.format(port=port, folder=self.folder, environment=environment)
        (self.folder / "sshd_config").write_text(config)
        # The host ends with this process, however that ends.
        enter = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
        self.process = subprocess.Popen(
            [*enter, "bash", "-c", START, "sshd", SSHD],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._wait_for(port)

    def run(self, *command: str, cwd: Path | None = None, timeout: float = 60) -> subprocess.CompletedProcess:
        """Run a command on the host; its output and errors come back as one text."""
        pid = (self.folder / "pid").read_text().strip()
        env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DEAR_"))}
        return subprocess.run(
            ["nsenter", "--target", pid, "--mount", "--pid", f"--wd={cwd or self.home}", *command],
            env=env | {"HOME": str(self.home), "TMPDIR": str(self.folder / "tmp")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
        )

    def processes(self) -> list[str]:
        """Command lines of all that runs on the host."""
        return self.run("ps", "-ww", "-eo", "args=").stdout.splitlines()

    def stop(self) -> None:
        """End the host and every process on it."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        number = self.folder / "pid"
        first = Path("/proc") / number.read_text().strip() if number.exists() else None
        deadline = time.monotonic() + 10
        while first is not None and first.exists() and time.monotonic() < deadline:
            time.sleep(0.1)  # the kernel ends the first process after all the others

    def _make_account(self, port: int) -> None:
        ssh = self.home / ".ssh"
        ssh.mkdir(parents=True, mode=0o700)
        (self.folder / "tmp").mkdir()
        for key in (self.folder / "host_key", ssh / "id_ed25519"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        shutil.copy(ssh / "id_ed25519.pub", ssh / "authorized_keys")
        (ssh / "config").write_text(f"Host 127.0.0.1\n  Port {port}\n")
        (self.home / ".profile").write_text(". ~/.bashrc\n")
        python = shlex.quote(str(Path(sys.base_prefix) / "bin"))
        (self.home / ".bashrc").write_text(BASHRC.format(python=python))
        pip = Path.home() / ".config" / "pip"
        if pip.is_dir():
            shutil.copytree(pip, self.home / ".config" / "pip")

    def _make_mounts(self) -> None:
        """An account database with root's home here, and the paths that Ray's launcher fixes."""
        (self.folder / "passwd").write_text(f"root:x:0:0:root:{self.home}:/bin/bash\n{_other_accounts()}")
        (self.folder / "shadow").write_text("root:*:20000:0:99999:7:::\n")
        (self.folder / "shadow").chmod(0o600)
        user = hashlib.sha256(getpass.getuser().encode()).hexdigest()[:10]
        lines = [(self.folder / name, f"/etc/{name}") for name in ("passwd", "shadow")]
        for public in ("/tmp/ray", f"/tmp/ray_ssh_{user}"):
            private = self.folder / Path(public).name
            private.mkdir(mode=0o700)
            Path(public).mkdir(exist_ok=True)
            lines.append((private, public))
        (self.folder / "mounts").write_text("".join(f"{private} {public}\n" for private, public in lines))

    def _wait_for(self, port: int) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket() as probe:
                if (self.folder / "pid").exists() and probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.1)
        said = self.log.read_text() if self.log.exists() else ""
        raise RuntimeError(f"sshd did not start in a namespace of its own\n{said}")


def _other_accounts() -> str:
    """sshd needs the account that its unprivileged part runs as."""
    lines = Path("/etc/passwd").read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("root:"))


def _machine_settings() -> dict[str, str]:
    """How this machine reaches package indexes, and a terminal wide enough for the table."""
    wanted = (
        "PIP_",
        "SSL_",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
    )
    settings = {name: value for name, value in os.environ.items() if name.startswith(wanted)}
    cache = os.environ.get("PIP_CACHE_DIR") or str(Path.home() / ".cache" / "pip")
    return settings | {"PIP_CACHE_DIR": cache, "COLUMNS": "160"}
