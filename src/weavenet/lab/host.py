"""A running host of a lab, the containers in it, and what can be done to both. Synchronous; made of processes."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.lab import processes, requirements
from weavenet.lab.state import NAME, HostState, disk_folder
from weavenet.lab.waiting import wait_until

COMMAND_TIMEOUT_S = 120.0
END_DEADLINE_S = 10.0
RESOLVER = "nameserver 169.254.53.53\nsearch weave.local\noptions timeout:1 attempts:3\n"
"""resolv.conf(5) of every container: the DNS server that weave runs on its host."""
LIFELONG = ("sleep", "infinity")

Result = subprocess.CompletedProcess[str]


class Running:
    """A command that runs in a host, with its output in ``out`` where a file was given."""

    def __init__(self, process: subprocess.Popen[str], token: str) -> None:
        self.process = process
        self._token = token

    def pids(self) -> list[int]:
        """The command's own processes, without the ``nsenter`` that waits for them outside."""
        return [
            pid
            for pid in processes.all_pids()
            if pid != self.process.pid and processes.environment(pid).get(processes.TOKEN) == self._token
        ]

    def send(self, number: signal.Signals) -> None:
        processes.send(self.pids(), number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends the command, by force when it does not listen; returns its exit status."""
        self.send(number)
        try:
            return self.process.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self.process.kill()
            return self.process.wait(END_DEADLINE_S)


class Host:
    """``look`` gives the host's present state; everything else follows from it."""

    def __init__(self, lab: str, name: str, look: Callable[[], HostState]) -> None:
        self.lab = lab
        self.name = name
        self._look = look

    @property
    def state(self) -> HostState:
        return self._look()

    @property
    def address(self) -> str:
        return self.state.address

    @property
    def disk(self) -> Path:
        """``etc``, ``data`` (/var/lib/weave) and ``log`` (/var/log) of the host."""
        return disk_folder(self.lab) / self.name

    @property
    def pid(self) -> int:
        """PID 1 of the host as the machine sees it; raises ``WeaveError`` when the host is down."""
        state = self.state
        if not state.is_running:
            raise WeaveError(
                Failure(
                    Code.HOST,
                    f"host {self.name} of lab {self.lab} runs",
                    "it is down",
                    f"weave lab reboot {self.name} --lab {self.lab}",
                )
            )
        return state.pid

    def path(self, inside: str) -> Path:
        """Where a file of the host is for the machine."""
        return Path(f"/proc/{self.pid}/root") / inside.lstrip("/")

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a login on that host would have: nothing of the caller's but the language and the terminal."""
        kept = {name: os.environ[name] for name in ("TERM", "LANG", "LC_ALL", "COLUMNS") if name in os.environ}
        return {
            **kept,
            "PATH": f"/run/lab/bin:{requirements.SEARCH_PATH}",
            "HOME": "/root",
            "USER": "root",
            "SHELL": "/bin/sh",
            **processes.marks(self.lab, self.name),
            **(extra or {}),
        }

    def entering(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs ``argv`` in this host, for the machine."""
        return [requirements.tool("nsenter"), "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "--", *argv]

    def popen(
        self, argv: Sequence[str], *, out: Path | int = subprocess.PIPE, environment: Mapping[str, str] | None = None
    ) -> Running:
        """Starts a command and returns at once. Its errors go where its output goes."""
        token = secrets.token_hex(8)
        target = out.open("w") if isinstance(out, Path) else out
        try:
            process = subprocess.Popen(
                self.entering(argv),
                stdin=subprocess.DEVNULL,
                stdout=target,
                stderr=subprocess.STDOUT,
                text=True,
                env=self.environment({**(environment or {}), processes.TOKEN: token}),
            )
        finally:
            if not isinstance(target, int):
                target.close()
        return Running(process, token)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = COMMAND_TIMEOUT_S,
        check: bool = False,
        text: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Result:
        """Runs a command to its end. ``check``: an exit status other than 0 raises ``WeaveError`` with the output."""
        token = secrets.token_hex(8)
        process = subprocess.Popen(
            self.entering(argv),
            stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment({**(environment or {}), processes.TOKEN: token}),
        )
        try:
            out, err = process.communicate(text, timeout=timeout_s)
        except BaseException as problem:
            Running(process, token).send(signal.SIGKILL)
            process.kill()
            process.communicate()
            if isinstance(problem, subprocess.TimeoutExpired):
                raise self._unfinished(argv, timeout_s) from None
            raise
        if check and process.returncode != 0:
            raise WeaveError(
                Failure(
                    Code.HOST,
                    f"`{' '.join(argv)}` on {self.name} should succeed",
                    f"exit {process.returncode}: {(err or out).strip()}",
                )
            )
        return Result(list(argv), process.returncode, out, err)

    def _unfinished(self, argv: Sequence[str], timeout_s: float) -> WeaveError:
        return WeaveError(
            Failure(
                Code.TIMEOUT,
                f"`{' '.join(argv)}` on {self.name} should end within {timeout_s:g} s",
                "it ran on and was killed",
                f"look at {self.disk}/log",
            )
        )

    def weave(
        self,
        *arguments: str,
        timeout_s: float = COMMAND_TIMEOUT_S,
        check: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> Result:
        return self.run(["weave", *arguments], timeout_s=timeout_s, check=check, environment=environment)

    def daemon_pids(self) -> list[int]:
        """The weave daemon of this host, as the machine sees it; empty when none runs."""
        return [
            pid
            for pid in processes.inside(self.pid)
            if any(
                part in argument
                for argument in processes.arguments(pid)
                for part in ("weavenet.runtime", "weavenet/runtime")
            )
        ]

    def _daemon(self) -> list[int]:
        found = self.daemon_pids()
        if not found:
            raise WeaveError(
                Failure(
                    Code.NOT_FOUND,
                    f"a weave daemon runs on {self.name}",
                    "none does",
                    f"weave lab exec {self.name} -- weave launch",
                )
            )
        return found

    def pause_daemon(self) -> None:
        processes.send(self._daemon(), signal.SIGSTOP)

    def resume_daemon(self) -> None:
        processes.send(self._daemon(), signal.SIGCONT)

    def kill_daemon(self) -> None:
        """SIGKILL, as ``kill -9``; returns when the process is gone."""
        found = self._daemon()
        processes.send(found, signal.SIGKILL)
        wait_until(
            lambda: not any(map(processes.start_time, found)), END_DEADLINE_S, f"the daemon of {self.name} to end"
        )

    def pause(self) -> None:
        """Stops every process of the host, the reaper last."""
        processes.send(reversed(processes.inside(self.pid)), signal.SIGSTOP)

    def resume(self) -> None:
        processes.send(processes.inside(self.pid), signal.SIGCONT)
        waiting_outside = [pid for pid, mark in processes.marked(self.lab).items() if mark == f"{self.lab}/{self.name}"]
        processes.send(waiting_outside, signal.SIGCONT)

    def start_container(self, name: str, command: Sequence[str] = LIFELONG) -> Container:
        """A network namespace with a command that keeps running in it; its output is /var/log/container-<name>.log."""
        if not NAME.fullmatch(name):
            raise WeaveError(
                Failure(
                    Code.INVALID,
                    "a container's name is a small letter and up to 31 small letters, digits or dashes",
                    repr(name),
                    f"weave lab run {self.name} --name web",
                )
            )
        if name in self.container_names():
            raise WeaveError(
                Failure(
                    Code.ALREADY_TAKEN,
                    f"no container {name} on {self.name}",
                    "there is one",
                    f"choose another name, or `weave lab rm {self.name} {name}`",
                )
            )
        if self.run(["sh", "-c", 'command -v -- "$0"', command[0]]).returncode != 0:
            raise WeaveError(
                Failure(Code.NOT_FOUND, f"{self.name} has the command {command[0]}", "it is not on its PATH")
            )
        self.run(["ip", "netns", "add", name], check=True)
        container = Container(self, name)
        container.write_resolver()
        detached = 'setsid -- "$@" </dev/null >>"/var/log/container-$0.log" 2>&1 &'
        self.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        container.run(["sh", "-c", detached, name, *command], check=True)
        return container

    def container(self, name: str) -> Container:
        if name not in self.container_names():
            known = ", ".join(self.container_names()) or "none"
            raise WeaveError(
                Failure(
                    Code.NOT_FOUND,
                    f"a container {name} on {self.name}",
                    f"its containers: {known}",
                    f"weave lab run {self.name} --name {name}",
                )
            )
        return Container(self, name)

    def container_names(self) -> list[str]:
        folder = self.path("/run/netns")
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


class Container:
    """A network namespace of a host, by its name in the host's /run/netns."""

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.name = name

    @property
    def id(self) -> str:
        """What ``weave attach`` calls it."""
        return f"netns:{self.name}"

    def write_resolver(self) -> None:
        """`ip netns exec` shows a command the files in /etc/netns/NAME in place of those in /etc (ip-netns(8))."""
        folder = self.host.path(f"/etc/netns/{self.name}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "resolv.conf").write_text(RESOLVER)

    def entering(self, argv: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *argv]

    def run(self, argv: Sequence[str], *, timeout_s: float = COMMAND_TIMEOUT_S, check: bool = False) -> Result:
        return self.host.run(self.entering(argv), timeout_s=timeout_s, check=check)

    def popen(self, argv: Sequence[str], *, out: Path | int = subprocess.PIPE) -> Running:
        return self.host.popen(self.entering(argv), out=out)

    def attach(self, *addresses: str, timeout_s: float = COMMAND_TIMEOUT_S) -> list[str]:
        """``weave attach``: the addresses it got, without prefix length."""
        done = self.host.weave("attach", *addresses, self.id, timeout_s=timeout_s, check=True)
        return [word.partition("/")[0] for word in done.stdout.split()]

    def addresses(self) -> list[str]:
        """IPv4 addresses on ``ethwe``, without prefix length; empty when not attached."""
        words = self.run(["ip", "-4", "-o", "address", "show", "dev", "ethwe"]).stdout.split()
        return [words[index + 1].partition("/")[0] for index, word in enumerate(words) if word == "inet"]

    def resolve(self, name: str) -> list[str]:
        """IPv4 addresses that a program in the container gets for ``name``, sorted; empty when there are none."""
        words = [line.split() for line in self.run(["getent", "ahostsv4", name]).stdout.splitlines()]
        return sorted({line[0] for line in words if line})

    def ping(self, address: str, timeout_s: int = 2) -> bool:
        return self.run(["ping", "-n", "-q", "-c", "1", "-W", str(timeout_s), address]).returncode == 0

    def remove(self) -> None:
        """Ends the container's processes and deletes its namespace."""
        pids = self.host.run(["ip", "netns", "pids", self.name], check=True).stdout.split()
        if pids:
            # The shell's own kill: the command is in a package of its own. One that ended meanwhile is no error.
            self.host.run(["sh", "-c", 'kill -KILL "$@"', "kill", *pids])
        self.host.run(["ip", "netns", "del", self.name], check=True)
        self.host.run(["rm", "-rf", f"/etc/netns/{self.name}"], check=True)
