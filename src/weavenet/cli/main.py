"""The table of verbs. Each is imported when it is used, and only then."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from weavenet.cli.outcome import ERROR, OK, Ended, spoken, tell

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

VERBS = {
    "setup": ("weavenet.cli.setup:setup", "check this host and fetch what launch needs"),
    "launch": ("weavenet.cli.launch:launch", "start the daemon and join the given peers"),
    "stop": ("weavenet.cli.stop:stop", "stop the daemon; containers keep their network"),
    "consense": ("weavenet.cli.consense:consense", "divide the addresses now and wait until it is decided"),
    "prime": ("weavenet.cli.consense:consense", "the same as consense"),
    "connect": ("weavenet.cli.targets:connect", "add peers to connect to, and remember them"),
    "forget": ("weavenet.cli.targets:forget", "remove peers from the list to connect to"),
    "attach": ("weavenet.cli.attachments:attach", "give a container an interface and addresses"),
    "detach": ("weavenet.cli.attachments:detach", "take addresses from a container"),
    "ps": ("weavenet.cli.attachments:ps", "list attached containers with MAC and addresses"),
    "expose": ("weavenet.cli.expose:expose", "give this host itself an address on the network"),
    "hide": ("weavenet.cli.expose:hide", "the reverse"),
    "dns-add": ("weavenet.cli.names:dns_add", "let a name stand for addresses, on every host"),
    "dns-remove": ("weavenet.cli.names:dns_remove", "take such a name away"),
    "dns-lookup": ("weavenet.cli.names:dns_lookup", "print the addresses of a name"),
    "dns-args": ("weavenet.cli.names:dns_args", "print docker's arguments for our DNS server"),
    "status": ("weavenet.cli.status:status", "what is wrong and what to do, then the facts"),
    "rmpeer": ("weavenet.cli.rmpeer:rmpeer", "take over the addresses of dead peers"),
    "reset": ("weavenet.cli.reset:reset", "leave the cluster, then forget and remove everything"),
    "explain": ("weavenet.cli.explain:explain", "can one container, address or host talk to another?"),
    "install-unit": ("weavenet.cli.installunit:install_unit", "start the daemon at boot"),
    "report": ("weavenet.cli.report:report", "everything the daemon knows, as JSON"),
    "password": ("weavenet.cli.password:password", "print a strong random password"),
    "lab": ("weavenet.cli.tools:lab", "many hosts on this machine, to try things out"),
    "sim": ("weavenet.cli.tools:sim", "simulated clusters under faults"),
    "completion": ("weavenet.cli.completion:completion", "print shell completion for bash, zsh or fish"),
    "version": ("weavenet.cli.version:version", "versions of this command and of the daemon"),
    "help": ("weavenet.cli.help:help_", "this text, or the help of one verb"),
}

_WHOLE = {"lab": "weavenet.lab.cli:group", "sim": "weavenet.sim.cli:sim_command"}
"""What these verbs pass their arguments on to; a shell that completes them needs to see it."""


@contextlib.contextmanager
def _unread() -> Iterator[None]:
    """A reader that went away (``weave ps | head -1``) is no error; click would exit with 1."""
    try:
        yield
    except BrokenPipeError:
        raise Ended(OK) from None


class Verbs(click.Group):
    """A group whose commands are loaded on demand; its own help needs none of them."""

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        with _unread():
            return super().make_context(*arguments, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _unread():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        place = VERBS[cmd_name][0]
        if ctx.resilient_parsing:  # for completion
            place = _WHOLE.get(cmd_name, place)
        module, _, attribute = place.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in VERBS and not ctx.resilient_parsing:
            near = difflib.get_close_matches(args[0], VERBS, n=1)
            step = f"did you mean `weave {near[0]}`?" if near else "`weave help` lists the verbs"
            raise Ended(ERROR, f"unknown verb {args[0]!r}; next: {step}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        from click.shell_completion import CompletionItem

        verbs = [CompletionItem(verb, help=text) for verb, (_, text) in VERBS.items() if verb.startswith(incomplete)]
        return verbs + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])


@click.group(cls=Verbs, name="weave", options_metavar="", subcommand_metavar="VERB …", add_help_option=True)
def cli() -> None:
    """One network for containers on many hosts.

    \b
    On the first host:     weave launch
    On every other host:   weave launch FIRST-HOST
    For each container:    weave attach netns:NAME     (prints its address)
    When in doubt:         weave status                (says what is wrong and what to do)

    `weave VERB --help` explains a verb, with an example. Exit status: 0 success, 1 error, 2 timeout or threshold
    reached, 3 already running, 4 not found or switched off.
    """


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit status. Never raises for what a person can cause."""
    try:
        status = cli.main(arguments or ["help"], prog_name="weave", standalone_mode=False)
    except Ended as ended:
        if sentence := ended.told():
            tell(spoken(sentence))
        return ended.status
    except click.exceptions.NoArgsIsHelpError as error:
        _show(error)
        return ERROR
    except click.ClickException as error:
        # click would exit with 2, which here means that a limit was reached.
        _show(error)
        return ERROR
    except (click.Abort, KeyboardInterrupt):
        tell("weave: interrupted")
        return 130
    return status if isinstance(status, int) else OK


def _show(error: click.ClickException) -> None:
    text = io.StringIO()
    error.show(text)
    tell(text.getvalue().rstrip("\n"))


def main() -> None:
    """Entry point of an installed package."""
    from weavenet.cli import quick

    sys.exit(quick.main(sys.argv[1:]))
