"""``weave install-unit``: start at boot."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import click

from weavenet import program
from weavenet.cli import layers, unitfile
from weavenet.cli.client import UNIT_PATH, NotRunning, ask
from weavenet.cli.outcome import ERROR, Ended
from weavenet.cli.printing import as_json, note, output_option
from weavenet.cli.values import refuse

_BOOTED = Path("/run/systemd/system")
"""A folder that is there when systemd is what booted this host: sd_booted(3)."""
_SYSTEMCTL_TIMEOUT_S = 60


@click.command("install-unit")
@click.option("--dry-run", is_flag=True, help="Print the unit; change nothing.")
@click.option("--uninstall", is_flag=True, help="Do not start at boot any more, and remove the unit.")
@output_option
def install_unit(output: str | None, dry_run: bool, uninstall: bool) -> None:
    """Start the daemon at boot: write a systemd unit and enable it; prints where it is.

    Settings come from /etc/weave.conf, which is made where it is missing, with all of them commented out. A running
    daemon is left alone. Run it again after moving the checkout. Changes of your own: systemctl edit weave.

    \b
    Example:  weave install-unit
              weave install-unit --dry-run
              weave install-unit --uninstall
    """
    if dry_run and uninstall:
        refuse("expected one of --dry-run and --uninstall", "both", "leave one out")
    conf = layers.conf_path()
    unit = Path(UNIT_PATH)
    text = _unit(conf)
    if dry_run:
        as_json({"path": str(unit), "unit": text, "conf": conf}) if output else click.echo(text, nl=False)
        return
    if os.geteuid() != 0:
        raise Ended(ERROR, "install-unit needs root: it writes to /etc; next: sudo weave install-unit")
    systemctl = _systemctl()
    _refuse_foreign(unit)
    changed = _uninstall(systemctl, unit) if uninstall else _install(systemctl, unit, text, Path(conf))
    if output:
        as_json({"path": str(unit), "installed": not uninstall, "changed": changed, "conf": conf})
    elif not uninstall:
        click.echo(unit)


def _unit(conf: str) -> str:
    root = Path(program.source).parent
    launcher = root / "weave"
    if not launcher.is_file():  # installed as a package
        launcher = Path(sys.executable).parent / "weave"
    return unitfile.unit(str(launcher), str(root / "README.md"), None if conf == layers.CONF_PATH else conf)


def _systemctl() -> str:
    path = shutil.which("systemctl", path=f"{os.environ.get('PATH', '')}:/usr/bin:/bin")
    if path is None:
        refuse(
            "expected systemd on this host, whose unit is to be installed",
            "no systemctl",
            "let whatever starts your services run: weave launch --foreground",
        )
    return path


def _refuse_foreign(unit: Path) -> None:
    """Raises Ended when somebody else wrote the unit."""
    text = _read(unit)
    if text is not None and not text.startswith(unitfile.FIRST_LINE):
        refuse(
            f"expected {unit} to be missing or written by weave install-unit",
            f"it begins with {text.partition(chr(10))[0][:100]!r}",
            f"move it away; what it adds can become a drop-in: systemctl edit {unitfile.UNIT_NAME}",
        )


def _install(systemctl: str, unit: Path, text: str, conf: Path) -> bool:
    """Whether anything changed."""
    changed = _read(unit) != text
    if changed:
        _write(unit, text, 0o644)
        note(f"wrote {unit}")
    if not conf.exists():
        _write(conf, unitfile.skeleton(), 0o600)
        note(f"wrote {conf}: all settings, commented out")
        changed = True
    _warn_of_owners(Path(program.source).parent)
    was_enabled = _is_enabled(systemctl)
    if not was_enabled:
        _run(systemctl, "enable", unitfile.UNIT_NAME)
    if changed and _BOOTED.is_dir():
        _run(systemctl, "daemon-reload")
    changed = changed or not was_enabled
    note("weave starts at boot" if changed else "weave starts at boot already; nothing to change")
    note(f"next: {_next_step(systemctl, conf)}")
    return changed


def _next_step(systemctl: str, conf: Path) -> str:
    if not _BOOTED.is_dir():
        return f"put peers and settings into {conf}; systemd does not run here, so it counts from the next boot on"
    try:
        ask("GET", "/v1/ping")
    except NotRunning:
        return f"put peers and settings into {conf}, then: systemctl start weave"
    if _run(systemctl, "show", "--property=ActiveState", "--value", unitfile.UNIT_NAME).strip() == "active":
        return f"when you have changed {conf} or the unit: systemctl restart weave"
    return (
        f"write what you gave to `weave launch` as flags into {conf}; the running daemon goes on until the next boot, "
        "or until: weave stop && systemctl start weave"
    )


def _uninstall(systemctl: str, unit: Path) -> bool:
    """Whether anything changed."""
    if not unit.exists():
        note(f"there is no {unit}; nothing to change")
        return False
    _run(systemctl, "disable", unitfile.UNIT_NAME)
    try:
        unit.unlink()
    except OSError as error:
        refuse(f"expected to remove {unit}", error.strerror or str(error), "correct that and run this again")
    if _BOOTED.is_dir():
        _run(systemctl, "daemon-reload")
    note(f"removed {unit}; weave does not start at boot any more")
    note(
        "settings and state stay, and a running daemon goes on; next: `weave stop`, or `weave reset` to leave for good"
    )
    return True


def _is_enabled(systemctl: str) -> bool:
    return _call(systemctl, "is-enabled", "--quiet", unitfile.UNIT_NAME).returncode == 0


def _run(systemctl: str, *arguments: str) -> str:
    """What systemctl prints. Raises Ended when it fails."""
    done = _call(systemctl, *arguments)
    if done.returncode != 0:
        found = done.stderr.strip() or f"exit status {done.returncode}"
        refuse(f"expected `systemctl {' '.join(arguments)}` to work", found, "correct that and run this again")
    return done.stdout


def _call(systemctl: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Raises Ended when it does not come back."""
    try:
        return subprocess.run(
            [systemctl, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_SYSTEMCTL_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        expected = f"expected an answer to `systemctl {' '.join(arguments)}`"
        refuse(expected, f"none within {_SYSTEMCTL_TIMEOUT_S} s", "see `systemctl list-jobs`, and run this again")


def _warn_of_owners(root: Path) -> None:
    """A unit runs as root, so whoever can write what it starts can become root at the next boot."""
    for path in (root / "weave", root, *root.parents):
        try:
            status = path.stat()
        except OSError:
            continue
        is_open = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
        if status.st_uid != 0 or is_open:
            found = "can be written by everybody" if is_open else f"belongs to uid {status.st_uid}"
            note(
                f"warning: {path} {found}, who could become root with it at the next boot; "
                "next: move the checkout to /opt, owned by root, and run install-unit there"
            )
            return


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        refuse(f"expected to read {path}", error.strerror or str(error), "correct that and run this again")


def _write(path: Path, text: str, mode: int) -> None:
    """As a whole or not at all. Raises Ended."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "w") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        refuse(f"expected to write {path}", error.strerror or str(error), "correct that and run this again")
