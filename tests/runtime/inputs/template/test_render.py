"""Templates render as transformers renders them, and what no prompt needs ends in one line."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmedge.runtime.errors import BundleError, PromptError
from vlmedge.runtime.inputs.template import budget as template_budget
from vlmedge.runtime.inputs.template.render import (
    MAX_SOURCE_BYTES,
    compile_template,
    render_template,
)

GROW = "{% set ns = namespace(s='xx', l=[1]) %}{% for i in range(1000) %}@{% endfor %}"
# Each would take gigabytes or hours; nearly all of them did.
BOMBS = {
    "product": "{{ 'a' * 10**10 }}",
    "list product": "{{ [0] * 10**10 }}",
    "power": "{{ 10**(10**10) }}",
    "width of a method": "{{ 'x'.rjust(10000000000) }}",
    "width of a filter": "{{ 'x'|center(10000000000) }}",
    "percent width": "{{ '%1000000000d' % 1 }}",
    "percent width from a value": "{{ '%*d' % (1000000000, 1) }}",
    "percent precision": "{{ '%.1000000000f'|format(1) }}",
    "format width": "{{ '{:>1000000000}'.format(1) }}",
    "format width from a value": "{{ '{:{}}'.format(1, 1000000000) }}",
    "format of many fields": "{{ ('{0}' * 3000).format('x' * 100000) }}",
    "nested loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "loops without a body": (
        "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}"
    ),
    "recursive loops": "{% for x in range(999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "recursive macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "forking macro": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}"
    ),
    "doubled by ~": GROW.replace("@", "{% set ns.s = ns.s ~ ns.s %}"),
    "doubled by +": GROW.replace("@", "{% set ns.s = ns.s + ns.s %}"),
    "doubled by a block": GROW.replace(
        "@", "{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = x %}"
    ),
    "replaced by itself": GROW.replace("@", "{% set ns.s = ns.s.replace('x', ns.s) %}"),
    "replaced by a filter": GROW.replace("@", "{% set ns.s = ns.s|replace('x', ns.s) %}"),
    "joined by itself": GROW.replace("@", "{% set ns.s = ns.s.join(ns.s) %}"),
    "joined by a filter": GROW.replace("@", "{% set ns.s = ns.s|map('upper')|join(ns.s) %}"),
    "list of itself": GROW.replace("@", "{% set ns.l = [ns.l, ns.l] %}") + "{{ ns.l }}",
    "mapping of itself": GROW.replace("@", "{% set ns.l = {1: ns.l, 2: ns.l} %}")
    + "{{ ns.l|tojson(indent=4) }}",
    "namespace in a namespace": "{% set a = namespace() %}{% set a.b = a %}",
    "text in a block": "{% for i in range(99999) %}{% set x %}"
    + "y" * 200_000
    + "{% endset %}{% endfor %}",
    "indentation": r"{{ ('\n' * 100000)|indent(100000) }}",
    "indentation of JSON": "{{ [1]|tojson(indent=1000000000) }}",
    "separators of JSON": "{{ [1, 2]|tojson(separators=('x' * 1000000, ':')) }}",
    "batch": "{{ [1]|batch(1000000000, 'x')|list }}",
    "slice": "{{ [1]|slice(1000000000)|list }}",
    "round": "{{ 5|round(-1000000000) }}",
    "sum of lists": "{{ [[1]]|sum(start=[]) }}",
    "bytes of a number": "{{ (1).to_bytes(1000000000) }}",
    "characters as items": "{% set s = 'x' * 30000000 %}{{ s|list|length }}",
    "pieces": "{% set s = 'x ' * 9000000 %}{{ s.split()|length }}",
    "capitals": "{% set s = 'ab ' * 5000000 %}"
    "{% for i in range(99) %}{{ s|title|length }}{% endfor %}",
    "comparisons": "{% set a = [0] * 99999 %}{% set b = [0] * 99999 %}"
    "{% for i in range(99999) %}{% if a == b %}{% endif %}{% endfor %}",
    "copies": "{% set a = [0] * 99999 %}{% for i in range(99999) %}{% set b = a[:] %}{% endfor %}",
    "random text": "{{ lipsum(n=1000000000) }}",
    "escaping a computed value": "{% autoescape 'a'|center(10000000000) %}{% endautoescape %}",
    "parentheses": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "blocks in blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "loops in loops": "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
    "signs": "{{ " + "-" * 50_000 + "1 }}",
    "branches": "{% if x %}" + "{% elif x %}" * 15_000 + "{% endif %}",
    "digits": "{{ " + "9" * 100_000 + " }}",
    "length": "x" * (MAX_SOURCE_BYTES + 1),
}
# What Python and Jinja raise by themselves.
FAULTS = {
    "division": "{{ 1 // 0 }}",
    "types": "{{ none + 1 }}",
    "undefined": "{{ nothing.at.all }}",
    "call": "{{ nothing() }}",
    "codec": "{{ 'a'.encode('nope') }}",
    "loader": "{% include 'x' %}",
    "private": "{{ messages.__class__.__mro__ }}",
    "half a pair": r"{{ '\ud800' }}",
    "range": "{{ range(1000000000) }}",
    "key": "{{ {}.popitem() }}",
    "its own": r"{{ raise_exception('no\nsystem') }}",
    "syntax": "{% for %}",
    "filter": "{{ 1|nothing }}",
    "break": "{% break %}",
}
RUN = """
import json, resource, sys
from vlmedge.runtime.inputs.template.render import compile_template, render_template
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
for name, source in json.load(sys.stdin).items():
    try:
        text = render_template(compile_template(source), messages=[])
        print(json.dumps([name, "fine", text[:80]]), flush=True)
    except ValueError as error:
        print(json.dumps([name, type(error).__name__, str(error)]), flush=True)
"""


@pytest.fixture(scope="module")
def endings():
    """How each ends, in a process that can't take more than 3 GiB."""
    result = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(BOMBS | FAULTS),
        capture_output=True,
        text=True,
        check=False,
    )
    assert not result.stderr
    return {name: ending for name, *ending in map(json.loads, result.stdout.splitlines())}


@pytest.mark.parametrize("name", [*BOMBS, *FAULTS])
def test_bombs_and_faults_end_as_errors_of_ours_in_one_line(endings, name):
    kind, text = endings[name]
    assert kind in ("PromptError", "BundleError")
    assert "\n" not in text
    if name not in ("branches",):  # Python's parser calls its full stack so
        assert "MemoryError" not in text


@pytest.mark.parametrize("source", ["{{ 'a' * 10**10 }}", "{{ 'a'|center(10000000000) }}"])
def test_nothing_is_computed_while_a_template_compiles(source):
    never = "{% if false %}" + source + "{% endif %}done"
    assert render_template(compile_template(never), messages=[]) == "done"


def test_the_line_of_a_fault_is_named():
    with pytest.raises(PromptError, match=r"line 3, refuses .*ZeroDivisionError"):
        render_template(compile_template("a\nb\n{{ 1 // 0 }}"), messages=[])
    with pytest.raises(PromptError, match=r"line 2, asks for more .* too large a value"):
        render_template(compile_template("a\n{{ 'a' * 10**9 }}"), messages=[])
    with pytest.raises(BundleError, match="line 2"):
        compile_template("a\n{% for %}")


def test_each_rendering_has_a_budget_of_its_own(monkeypatch):
    monkeypatch.setattr(template_budget, "MAX_UNITS", 200_000)
    template = compile_template("{% for i in range(50) %}x{% endfor %}")
    for _ in range(20):
        assert render_template(template, messages=[]) == "x" * 50


def test_long_conversations_have_a_longer_budget(monkeypatch):
    monkeypatch.setattr(template_budget, "MAX_UNITS", 10_000)
    template = compile_template("{% for m in messages %}{{ m.content | trim }}{% endfor %}")
    messages = [{"role": "user", "content": "x" * 1000}] * 2000
    assert render_template(template, messages=messages) == "x" * 2_000_000


CONTENT = " Größe: <b>3</b>, 'two'\n\tlines\r\n<|im_end|> x=1;y=2 "
EXPRESSIONS = [
    *(
        f"c.{name}()"
        for name in ("capitalize", "casefold", "isalnum", "islower", "isupper", "lower")
    ),
    *(f"c.{name}()" for name in ("lstrip", "rstrip", "split", "splitlines", "strip", "swapcase")),
    *(f"c.{name}()" for name in ("title", "upper")),
    "c.startswith(' G')",
    "c.endswith('x')",
    "c.replace('x', 'yy').replace('=', '', 1)",
    "c.split('\\n')[0].strip('Gr ')",
    "c.rsplit(',', 1)[-1]",
    "c.partition(':')[2]",
    "c.find('two') + c.count('i') * 2 - c.index('3') // 3 % 5 + 7 / 2 + 2 ** 5",
    "', '.join(['a', 'b'])",
    "', '.join(messages | map(attribute='role'))",
    "'{} and {:>5} and {a!r}'.format(c, 2024, a=3)",
    "'Year 2024: {}'.format(123456)",
    "'%s is %5.1f%% of 2024' % (c, 12.5)",
    "'%-4d|' | format(123456)",
    "c ~ 1 ~ none ~ true ~ [1, 'a'] ~ {'a': 1}",
    "c.ljust(60) ~ c.center(70) ~ '7'.zfill(3)",
    "c[::-1] ~ c[2:5] ~ messages[1:] | length",
    "c | trim | upper | lower | capitalize | title | length",
    "c | replace('x', 'z') | indent(2, true) | truncate(20)",
    "c | e ~ (c | safe) ~ (c | urlencode)",
    "c | wordcount",
    "[3, 1, 2] | sort | join('-')",
    "[3, 1, 2, 3] | unique | list | reverse | list",
    "[3, 1, 2] | sum ~ ([3, 1] | max) ~ ([3, 1] | min) ~ ([3, 1] | first) ~ ([3, 1] | last)",
    "messages | selectattr('role', 'equalto', 'user') | list | length",
    "messages | rejectattr('role', 'equalto', 'user') | map(attribute='role') | list",
    "[1, 2, 3, 4] | select('even') | list ~ ([1, 2] | reject('odd') | list)",
    "[1, 2, 3] | batch(2, 'x') | list ~ ([1, 2, 3] | slice(2) | list)",
    "messages | groupby('role') | list | length",
    "{'b': 1, 'a': [1, none]} | tojson ~ ({'b': 1} | tojson(indent=2, sort_keys=true))",
    "{'b': 1, 'a': 2} | dictsort ~ ({'a': 1} | items | list) ~ {'a': 1}.items() | list",
    "{'a': 1}.get('b', 5) ~ {'a': 1}.keys() | list",
    "3.14159 | round(2) ~ ('17' | int + 1) ~ ('x' | int(5)) ~ (-3 | abs) ~ ('2.5' | float)",
    "nothing | default('d') ~ (none is none) ~ (c is string) ~ (messages is iterable)",
    "1 < 2 <= 2 != 3 ~ ('x' in c) ~ (4 not in [1, 2]) ~ ('user' in messages[0].role)",
    "dict(a=1)['a'] ~ range(3) | list ~ namespace(a=5).a",
    "strftime_now('%')",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_print_what_they_print_in_transformers(reference_tokenizer, expression):
    source = "{% set c = messages[1]['content'] %}[{{ " + expression + " }}]"
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": CONTENT}]
    needed = reference_tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False)
    assert render_template(compile_template(source), messages=messages) == needed


# Loops, macros, calls, captured blocks and namespaces, with text of any kind in them.
STATEMENTS = """\
{%- macro show(m, tag='b') %}<{{ tag }}>
{{- m.content ~ caller() if caller else m.content }}</{{ tag }}>
{%- endmacro %}
{%- set ns = namespace(n=0, last='') %}
{%- for m in messages if m.role != 'system' %}
    {%- set ns.n = ns.n + 1 %}
    {%- set ns.last = m.content %}
    {%- set block %}{{ loop.index }}/{{ loop.length }} {{ loop.cycle('odd', 'even') }} {{ show(m) }}
{%- endset %}
  {{ block | trim }}{% if loop.last %}.{% elif loop.previtem is defined %},{% endif %}
    {%- if ns.n > 3 %}{% break %}{% endif %}
{%- else %}
nobody
{%- endfor %}
{% call show(messages[0], tag='i') %} !{% endcall %}
{% filter upper %}{{ ns.last }}{% endfilter %}
{% for x in [[1, [2]], 3] recursive %}{{ loop(x) if x is sequence else x }};{% endfor %}
{% generation %}{{ messages | length }}{% endgeneration %}
{# nothing #}{% raw %}{{ x }}{% endraw %}{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}
"""


@given(
    messages=st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text()}
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=60, deadline=None)
def test_statements_print_what_they_print_in_transformers(reference_tokenizer, messages):
    needed = reference_tokenizer.apply_chat_template(
        messages, chat_template=STATEMENTS, tokenize=False
    )
    assert render_template(compile_template(STATEMENTS), messages=messages) == needed
