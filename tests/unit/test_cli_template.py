"""Templates of ``weave report -f``: what Go's text/template makes of the same, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from weavenet.cli.template import TemplateError, parse

REPORT: dict[str, Any] = {
    "Ready": True,
    "Version": "1.0",
    "Router": {
        "Name": "::1",
        "Peers": [{"NickName": "a", "Reachable": True}, {"NickName": "b", "Reachable": False}],
        "Targets": ["h1", "h2"],
        "Connections": [],
    },
    "IPAM": {"Range": "10.32.0.0/12", "RangeNumIPs": 1048576, "Percent": 1.5, "None": None, "Odd": {"b": 1, "a": "x"}},
}


def rendered(template: str) -> str:
    return parse(template).render(REPORT)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("", ""),
        ("plain }} text", "plain }} text"),
        ("{{.IPAM.Range}}", "10.32.0.0/12"),
        ('{{ .IPAM.RangeNumIPs }}{{"\\n"}}', "1048576\n"),
        ("{{`raw\\n`}}{{7}}{{-7}}{{1.5}}{{true}}", "raw\\n7-71.5true"),
        ('{{"}}"}}', "}}"),
        ("{{.Ready}} {{.IPAM.Percent}} {{.IPAM.None}}", "true 1.5 <no value>"),
        ("{{.Router.Targets}} {{.IPAM.Odd}}", "[h1 h2] map[a:x b:1]"),
        ("{{len .Router.Peers}} {{len .Version}}", "2 3"),
        ("{{json .Router.Targets}}{{json .IPAM.None}}", '["h1","h2"]null'),
        ("{{.Router.Targets | json}}{{.Router.Targets|len|printf `%03d`}}", '["h1","h2"]002'),
        ("{{range .Router.Peers}}{{.NickName}},{{end}}", "a,b,"),
        ("{{range .Router.Connections}}x{{else}}none{{end}}", "none"),
        ("{{range $i, $p := .Router.Peers}}{{$i}}={{$p.NickName}}{{$.Version}} {{end}}", "0=a1.0 1=b1.0 "),
        ("{{range $t := .Router.Targets}}{{$t}};{{end}}", "h1;h2;"),
        ("{{range $k, $v := .IPAM.Odd}}{{$k}}:{{$v}} {{end}}", "a:x b:1 "),
        ("{{range .Router.Peers}}{{if .Reachable}}+{{else}}-{{end}}{{.NickName}}{{end}}", "+a-b"),
        ("{{if .IPAM.None}}x{{else if eq .Version `2.0` `1.0`}}y{{else}}z{{end}}", "y"),
        ("{{if and .Ready (not .IPAM.None)}}yes{{end}}{{if or false .IPAM.None}}no{{end}}", "yes"),
        ("{{with .IPAM}}{{.Range}}{{end}}{{with .IPAM.None}}x{{else}}-{{end}}", "10.32.0.0/12-"),
        ("{{$x := .IPAM}}{{$x.Range}}", "10.32.0.0/12"),
        ("{{$x := 1}}{{if true}}{{$x := 2}}{{$x}}{{end}}{{$x}}", "21"),
        ("{{(index .Router.Peers 1).NickName}} {{index .IPAM `Range`}}", "b 10.32.0.0/12"),
        ("{{eq .IPAM.RangeNumIPs 1048576}} {{ne .Version `1.0`}} {{lt 1 2}} {{ge 1.5 2}}", "true false true false"),
        ("{{eq .Ready 1}}", "false"),
        ('{{printf "%-5s|%q|%v|%.2f%%" .Version .Router.Name .Ready .IPAM.Percent}}', '1.0  |"::1"|true|1.50%'),
        ("{{print 1 `a`}}{{println 1 `a`}}{{print 1 2 `b` 3}}", "1a1 a\n1 2b3"),
        ("{{with $x := .IPAM}}{{$x.Range}}{{end}}{{if $n := len .Router.Peers}}{{$n}}{{end}}", "10.32.0.0/122"),
        ("a  {{- 1 -}}  b {{- /* said nothing */ -}} c", "a1bc"),
        ("{{/* {{ */}}x", "x"),
        ("{{.}}", "map[" + parse("{{range $k, $v := .}}{{$k}}:{{$v}} {{end}}").render(REPORT)[:-1] + "]"),
    ],
)
def test_templates_say_what_they_say_in_go(template: str, text: str) -> None:
    assert rendered(template) == text


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{.IPAM.Rnge}}", "did you mean .Range?"),
        ("{{.DNS.Address}}", "there are IPAM, Ready, Router, Version"),
        ("{{.Version.X}}", "expected an object; found: 1.0"),
        ("{{.IPAM", "expected }}"),
        ("{{range .Router.Peers}}", "no {{end}}"),
        ("{{end}}", "nothing to belong to"),
        ("{{else}}", "nothing to belong to"),
        ("{{if true}}{{else}}{{else}}{{end}}", "no {{end}}"),
        ("{{}}", "found: 'nothing'"),
        ("{{lenn .IPAM}}", "did you mean len?"),
        ("{{len}}", "0 values do not fit"),
        ("{{len 1}}", "expected text, a list or an object"),
        ("{{len .Ready}}", "expected text, a list or an object"),
        ("{{index .Router.Peers 2}}", "a number below 2"),
        ("{{range .Ready}}{{end}}", "expected a list or an object"),
        ("{{lt 1 `a`}}", "cannot compare"),
        ("{{printf `%d` `a`}}", "does not fit"),
        ("{{printf `%d`}}", "nothing is left"),
        ("{{printf `x` 1}}", "nothing in 'x'"),
        ("{{printf `%y` 1}}", "expected one of"),
        ("{{.Ready .Version}}", "nothing can follow"),
        ("{{.Ready | .Version}}", "expected a function"),
        ("{{$x}}", "not declared"),
        ("{{$x = 1}}", "cannot read"),
        ("{{range $a, 1 := .Router.Peers}}{{end}}", "expected a variable"),
        ("{{(len .IPAM}}", "expected )"),
        ("{{template `x`}}", "have no template"),
        ("{{if true}}" * 60 + "{{end}}" * 60, "blocks in each other"),
        ("{{" + "(" * 60 + "1" + ")" * 60 + "}}", "parentheses in each other"),
        ("{{§}}", "cannot read"),
    ],
)
def test_what_cannot_be_right_is_said(template: str, problem: str) -> None:
    with pytest.raises(TemplateError) as caught:
        rendered(template)
    assert problem in str(caught.value)
