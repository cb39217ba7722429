"""Users' own templates: what they get, what they cannot reach, and what is said of a mistake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from convaudit.errors import ReportError
from convaudit_reports import _template
from convaudit_reports import json as json_format

DOCS = Path(__file__).parents[2] / "docs" / "templates.md"


def render(folder: Path, text: str, result, *, escape: bool = False) -> str:
    (folder / "t.j2").write_text(text, encoding="utf-8")
    return _template.Template(folder / "t.j2", escape=escape).render(result)


def run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "convaudit", "check", *args], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_result_is_the_json_report(make, tmp_path: Path) -> None:
    several = make.result(make.target(), make.failed())

    assert json.loads(render(tmp_path, "{{ result|tojson }}", several)) == json.loads(
        json_format.render(several).replace("no\\nway", "no way")
    )


def test_every_text_of_the_result_is_one_line(make, tmp_path: Path) -> None:
    out = render(tmp_path, "{{ result }}", make.result(make.hostile()))

    assert out.isprintable()
    assert "\\x1b[31mred\\u202e" in render(tmp_path, "{{ result.targets[0].target }}", make.result(make.hostile()))


def test_the_documented_example_and_names(make, tmp_path: Path) -> None:
    text = DOCS.read_text(encoding="utf-8")
    several = make.result(make.target(), make.hostile(), make.failed())
    out = render(tmp_path, re.search(r"```jinja\n(.*?)```", text, re.DOTALL)[1], several)  # type: ignore[index]
    sandbox = _template.environment(tmp_path / "t.j2", escape=False)
    jinja = __import__("jinja2").Environment()

    assert "### `models/basic.py:BasicCNN`\n1,073,611 parameters, 6.66M MACs at 1×3×32×32\n" in out
    assert "- CNV101 `classifier.0`: a Linear reads a flattened 128×4×4 map\n  - parameters 1,193,642 → 274,250 (−77.0%)" in out
    assert "Not audited: no way\n" in out
    for added in (set(sandbox.filters) - set(jinja.filters), set(sandbox.globals) - set(jinja.globals)):
        assert added
        assert {name for name in added if not re.search(rf"^\| `{name}[`(]", text, re.MULTILINE)} == set()


@pytest.mark.parametrize("template", ["t.html", "t.md", "t.txt.j2", "t"])
@pytest.mark.parametrize(
    ("given", "escaped"),
    [(("-o", "x.html"), True), (("-o", "x.htm"), True), (("-o", "x.svg"), True), (("-o", "x.md"), False), (("-o", "x.txt"), False)],
)
def test_what_is_written_decides_on_escaping(tmp_path: Path, template: str, given: tuple[str, str], escaped: bool) -> None:
    from convaudit import output

    (tmp_path / template).write_text("{{ '<b>' }}")
    writers, _ = output.chosen([tmp_path / given[1]], "text", tmp_path / template)
    assert writers[0][1].escape is escaped


def test_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 8, 3))\n")
    (tmp_path / "t.j2").write_text("<{{ result.targets[0].totals.parameters }} {{ '&' }}>\n")
    net = ("net.py:net", "--input", "1,3,8,8", "--template", "t.j2")

    assert run(tmp_path, *net).stdout == "<224 &>\n"
    assert run(tmp_path, *net, "--format", "html").stdout == "<224 &amp;>\n"
    done = run(tmp_path, *net, "--format", "github", "-o", "x.html", "-o", "x.json")
    assert done.stdout.startswith("convaudit: ")
    assert (tmp_path / "x.html").read_text() == "<224 &amp;>\n"
    assert json.loads((tmp_path / "x.json").read_text())["targets"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--template", "bad.j2"), "--template bad.j2:2: Expected an expression, got 'end of statement block'"),
        (("--template", "missing.j2"), "--template missing.j2: cannot be read: No such file or directory"),
        (("--template", "binary.j2"), "--template binary.j2: cannot be read: 'utf-8' codec"),
        (("--template", "deep.j2"), "--template deep.j2: cannot be read: maximum recursion depth exceeded"),
        (("--template", "good.j2", "-o", "a.md", "-o", "b.html"), "--template renders one file; -o names a.md and b.html"),
        (("--template", "good.j2", "--format", "sarif"), "--template takes the place of what --format sarif prints"),
        (("--template", "good.j2"), "--template good.j2:1: 'nobody' is undefined"),
        (("--template", "includes.j2"), "--template bad.j2:2: Expected an expression, got 'end of statement block'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, given: tuple[str, ...], said: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(b'\x08\0\0\0\0\0\0\0{}      ')
    (tmp_path / "bad.j2").write_text("a\n{% if %}\n")
    (tmp_path / "good.j2").write_text("{{ nobody }}")
    (tmp_path / "includes.j2").write_text("\n\n{% include 'bad.j2' %}")
    (tmp_path / "binary.j2").write_bytes(b"\xff\xfe")
    (tmp_path / "deep.j2").write_text("{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}")
    done = run(tmp_path, "x.safetensors", *given)

    assert done.stderr.startswith(f"convaudit: {said}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


HOSTILE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ ''|attr('__class__') }}", "{{ ['']|map(attribute='__class__')|first }}",
    "{{ '{0.__class__}'.format(1) }}", "{% set f = '{0.__class__}'.format %}{{ f(1) }}", "{{ ['{0.__class__}'.format]|map('string') }}{{ ''.__class__ }}",
    "{{ live.__globals__ }}", "{{ live.__func__ }}", "{{ self.__init__ }}", "{{ self._TemplateReference__context }}",
    "{{ cycler.__init__.__globals__ }}", "{{ lipsum.__globals__ }}", "{{ result.targets.append(1) }}", "{{ result.update({'a': 1}) }}",
    "{% set result.a = 1 %}", "{{ loop.__class__ }}", "{% macro m() %}{{ m.__call__ }}{% endmacro %}{{ m() }}",
    "{{ ''.join.__self__ }}", "{{ namespace.__init__ }}", "{{ joiner.__init__.__globals__.sys }}",
    "{% include 'secret.txt' %}", "{% include '../secret.j2' %}", "{% include '/etc/passwd' %}", "{% include 'link.j2' %}",
    "{% include 'inside/../../secret.j2' %}", "{% import '../secret.j2' as s %}{{ s }}", "{% extends '../secret.j2' %}",
    "{% include 'folder' %}", "{% include '\\0' %}", "{% for i in range(100001) %}{% endfor %}", "{{ 'a' * 10**10 }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ '%9999999999d' % 1 }}", "{{ 'a'|center(10**10) }}",
    "{% set n = namespace(s='aa') %}{% for i in range(50) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_template_reaches_nothing_and_ends(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    folder = tmp_path / "templates"
    (folder / "inside").mkdir(parents=True)
    for name in ("secret.j2", "templates/secret.txt"):
        (tmp_path / name).write_text("SECRET")
    (folder / "link.j2").symlink_to(tmp_path / "secret.j2")
    monkeypatch.setattr(_template, "SECONDS", 3)
    with pytest.raises(ReportError) as caught:
        print(render(folder, text, make.result(make.target())))

    said = str(caught.value)
    assert re.match(rf"--template {re.escape(str(folder))}/t.j2(:1: |: not rendered within 3 s|: more than)", said), said
    assert "SECRET" not in said
    assert "\n" not in said


def test_files_of_its_own_folder_may_be_included(make, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.j2").write_text("{% macro name(t) %}<{{ t.target }}>{% endmacro %}")

    out = render(tmp_path, "{% from 'parts/a.j2' import name %}{{ name(result.targets[0]) }}", make.result(make.target("&")), escape=True)
    assert out == "<&amp;>"


def test_modules_of_the_working_directory_stay_outside(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("jinja2.py", "json.py", "convaudit_reports.py"):
        (tmp_path / name).write_text("raise SystemExit('taken over')")
    monkeypatch.chdir(tmp_path)

    assert render(tmp_path, "{{ 6 * 7 }}", make.result()) == "42"
    assert os.listdir(tmp_path).count("__pycache__") == 0
