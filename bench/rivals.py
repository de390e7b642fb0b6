"""Other encrypted userspace networks between two bench hosts, as Debian ships them.

Packages are fetched once into ``.cache/planes`` and unpacked there, never installed: two versions of wireguard-go
cannot be installed together, and a machine that is measured should stay as it is. The one of bookworm-backports
comes through a private list of sources, so that the machine's own lists do not change.

Each serves the host itself over a tun device, without the bridge and containers that Weave and the hand-made VXLAN have
on the way: that is their advantage.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path as File

from bench.document import CHECKOUT
from bench.hosts import Host, run, wait_for

CACHE = CHECKOUT / ".cache" / "planes"
STABLE = ("wireguard-go", "wireguard-tools", "nebula", "tinc", "liblzo2-2")
BACKPORTS = """Types: deb
URIs: http://deb.debian.org/debian
Suites: bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
FETCH_TIMEOUT_S = 300.0


def fetch() -> None:
    """Raises Failed when a package cannot be had."""
    stable, backports = CACHE / "stable", CACHE / "backports"
    if not (stable / "usr").exists():
        _unpack(stable, [], STABLE)
    if not (backports / "usr").exists():
        lists = CACHE / "lists"
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        sources = CACHE / "backports.sources"
        sources.write_text(BACKPORTS)
        options = [
            *("-o", f"Dir::Etc::sourcelist={sources}", "-o", "Dir::Etc::sourceparts=-"),
            *("-o", f"Dir::State::lists={lists}", "-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="),
        ]
        run(["apt-get", *options, "update", "-q"], timeout_s=FETCH_TIMEOUT_S)
        _unpack(backports, options, ("wireguard-go",))


def _unpack(folder: File, options: Sequence[str], packages: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["apt-get", *options, "download", "-q", *packages],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=FETCH_TIMEOUT_S,
        check=False,
    )
    found = sorted(folder.glob("*.deb"))
    if len(found) < len(packages):
        raise RuntimeError(f"apt-get download {' '.join(packages)}: {done.stderr.strip()}")
    for package in found:
        run(["dpkg", "-x", str(package), str(folder)])


def start(host: Host, *argv: str) -> None:
    """In the background; it ends with the host."""
    subprocess.Popen(host.command(*argv), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _address(host: Host, device: str, address: str, mtu: int | None = None) -> None:
    host.run("ip", "address", "add", f"{address}/24", "dev", device)
    host.run("ip", "link", "set", device, "up", *(("mtu", str(mtu)) if mtu else ()))


def wireguard(hosts: Sequence[Host], version: str, number: int) -> str:
    """wireguard-go out of ``version``'s folder; returns the far address. ``number`` tells several apart."""
    device, port = f"wg{number}", 51820 + number
    wg = str(CACHE / "stable" / "usr" / "bin" / "wg")
    keys = [run([wg, "genkey"]).strip() for _ in hosts]
    public = [_piped([wg, "pubkey"], key).strip() for key in keys]
    for index, host in enumerate(hosts):
        start(host, str(CACHE / version / "usr" / "bin" / "wireguard-go"), "-f", device)
        wait_for(lambda host=host: _has_socket(host, device), f"wireguard-go of {version} listens")  # type: ignore[misc]
        file = f"/run/{device}.key"
        host.run("sh", "-c", f"umask 77; echo {keys[index]} > {file}")
        other = 1 - index
        host.run(
            *(wg, "set", device, "private-key", file, "listen-port", str(port), "peer", public[other]),
            *("allowed-ips", f"10.97.{number}.{other + 1}/32", "endpoint", f"{hosts[other].address}:{port}"),
        )
        _address(host, device, f"10.97.{number}.{index + 1}", 1420)
    return f"10.97.{number}.2"


def _has_socket(host: Host, device: str) -> bool:
    done = subprocess.run(host.command("test", "-S", f"/var/run/wireguard/{device}.sock"), check=False)
    return done.returncode == 0


def _piped(argv: Sequence[str], text: str) -> str:
    return subprocess.run(argv, input=text, capture_output=True, text=True, check=True).stdout


def nebula(hosts: Sequence[Host]) -> str:
    """Returns the far address."""
    binaries = CACHE / "stable" / "usr" / "bin"
    folder = CACHE / "nebula"
    folder.mkdir(exist_ok=True)
    for stale in folder.iterdir():
        stale.unlink()
    cert = str(binaries / "nebula-cert")
    run([cert, "ca", "-name", "bench", "-out-crt", str(folder / "ca.crt"), "-out-key", str(folder / "ca.key")])
    for index, host in enumerate(hosts):
        name, other = f"n{index + 1}", 1 - index
        files = ("-out-crt", str(folder / f"{name}.crt"), "-out-key", str(folder / f"{name}.key"))
        ca = ("-ca-crt", str(folder / "ca.crt"), "-ca-key", str(folder / "ca.key"))
        run([cert, "sign", *ca, "-name", name, "-ip", f"10.96.0.{index + 1}/24", *files])
        (folder / f"{name}.yml").write_text(
            f"""pki: {{ca: {folder}/ca.crt, cert: {folder}/{name}.crt, key: {folder}/{name}.key}}
static_host_map: {{"10.96.0.{other + 1}": ["{hosts[other].address}:4242"]}}
lighthouse: {{am_lighthouse: false, interval: 60, hosts: []}}
listen: {{host: 0.0.0.0, port: 4242}}
tun: {{dev: nebula0, mtu: 1380}}
firewall:
  outbound: [{{port: any, proto: any, host: any}}]
  inbound: [{{port: any, proto: any, host: any}}]
"""
        )
        start(host, str(binaries / "nebula"), "-config", str(folder / f"{name}.yml"))
    return "10.96.0.2"


def tinc(hosts: Sequence[Host]) -> str:
    """Returns the far address."""
    root = CACHE / "stable"
    library = f"LD_LIBRARY_PATH={root}/usr/lib/x86_64-linux-gnu:{root}/lib/x86_64-linux-gnu"
    tincd = str(root / "usr" / "sbin" / "tincd")
    for index, host in enumerate(hosts):
        folder = CACHE / f"tinc{index + 1}"
        run(["rm", "-rf", str(folder)])
        (folder / "hosts").mkdir(parents=True)
        (folder / "tinc.conf").write_text(
            f"Name = t{index + 1}\nInterface = tinc0\nConnectTo = t{2 - index}\nMode = router\nDeviceType = tun\n"
        )
        (folder / "hosts" / f"t{index + 1}").write_text(
            f"Address = {host.address}\nSubnet = 10.95.0.{index + 1}/32\nCompression = 0\n"
        )
        subprocess.run(
            ["env", library, tincd, "-c", str(folder), "-K2048"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=True,
        )
    for index in range(2):
        text = (CACHE / f"tinc{index + 1}" / "hosts" / f"t{index + 1}").read_text()
        (CACHE / f"tinc{2 - index}" / "hosts" / f"t{index + 1}").write_text(text)
    for index, host in enumerate(hosts):
        folder = CACHE / f"tinc{index + 1}"
        start(host, "env", library, tincd, "-c", str(folder), "-D", f"--pidfile=/run/tinc{index}.pid")
        wait_for(lambda host=host: "tinc0" in host.run("ip", "-o", "link"), "tinc makes its device")  # type: ignore[misc]
        _address(host, "tinc0", f"10.95.0.{index + 1}")
    return "10.95.0.2"


def wait_until_reached(host: Host, address: str, *, seconds: float = 30.0) -> None:
    """The far address answers a ping."""
    deadline = time.monotonic() + seconds
    while True:
        done = subprocess.run(
            host.command("ping", "-n", "-c", "1", "-W", "1", address), capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"{address} does not answer from {host.name}: {done.stdout.strip()}")
