"""``weave report``."""

from __future__ import annotations

import click

from weavenet.cli.client import ask
from weavenet.cli.outcome import ERROR, Ended
from weavenet.cli.printing import output_option
from weavenet.cli.quick import write


@click.command()
@click.option("-f", "--format", "template", metavar="TEMPLATE", help="Print what this template makes of it.")
@output_option
def report(output: str | None, template: str | None) -> None:
    """Everything the daemon knows, as JSON; the keys are described in docs/report.md.

    A TEMPLATE is written as for Go's text/template: {{.IPAM.Range}}, {{len .Router.Peers}}, {{json .DNS}}, {{range}},
    {{if}}, pipes, {{printf}} and the like.

    \b
    Example:  weave report | jq .IPAM.Status
              weave report -f '{{.IPAM.Range}}{{"\\n"}}'
              weave report -f '{{range .Router.Peers}}{{.NickName}} {{.Reachable}}{{"\\n"}}{{end}}'
    """
    if template is None:
        write(ask("GET", "/v1/report").body)
        return
    if output:
        raise Ended(ERROR, "expected one of -f and -o; next: {{json .}} in the template prints JSON")
    from weavenet.cli.template import TemplateError, parse

    try:
        made = parse(template)
        text = made.render(ask("GET", "/v1/report").json())
    except TemplateError as error:
        raise Ended(ERROR, f"expected a template for the report; found: {error}; next: see docs/report.md") from None
    click.echo(text, nl=False)
