"""Templates that are small, count few steps and ask for hours or gigabytes inside one operation."""

import json
import subprocess
import sys

import pytest

from vlmedge.runtime.errors import PromptError
from vlmedge.runtime.inputs.template.render import compile_template, render_template

BOMBS = {
    "items of a lazy filter": "{% for i in range(100000) %}{% for b in [1]|batch(1000000, 'x') %}"
    "{% endfor %}{% endfor %}",
    "many items of a lazy filter": "{% for i in range(100000) %}"
    "{{ [1]|slice(1000000)|map(attribute='a', default=1)|sum }}{% endfor %}",
    "a loop's length": "{% for i in range(100000) %}{% for b in [1]|slice(1000000) %}"
    "{{ loop.length }}{% break %}{% endfor %}{% endfor %}",
    "stripping of many": "{{ ('a' * 3000000)|trim('b' * 3000000 ~ 'a') }}",
    "a method that strips": "{{ ('a' * 3000000).rstrip('b' * 3000000 ~ 'a') }}",
    "a search from the end": "{{ ('a' * 1000000).rfind('ab' ~ 'a' * 500000) }}",
    "a split from the end": "{{ ('a' * 1000000).rsplit('ab' ~ 'a' * 500000) }}",
    "a partition from the end": "{{ ('a' * 1000000).rpartition('ab' ~ 'a' * 500000) }}",
    "equal hashes": "{{ range(0, 100000 * (2**61 - 1), 2**61 - 1)|unique|list|length }}",
    "a key with brackets": "{{ ('%((a))999999999d' * 3) % {'(a)': 1} }}",
    "a key with percent signs": "{{ ('%(a%b)999999999d' * 3) % {'a%b': 1} }}",
    "a width behind a field": "{{ ('{:{}999999999}' * 3).format(1, '', 1, '', 1, '') }}",
    "a width as text": "{{ ('{:{}}' * 3).format(1, '999999999', 1, '999999999', 1, '999999999') }}",
    "keys without an end": "{% for i in range(100000) %}{{ ('%(' * 5000)|format }}{% endfor %}",
    "a long path": "{{ range(10000)|map(attribute='a.' * 5000 ~ 'a', default=1)|list|length }}",
    "a date": "{{ strftime_now('%p' * 10000000) }}",
}
RENDER = """
import json, resource, sys
from vlmedge.runtime.errors import PromptError
from vlmedge.runtime.inputs.template.render import compile_template, render_template

template = compile_template(sys.stdin.read())
resource.setrlimit(resource.RLIMIT_AS, (2 << 30,) * 2)
try:
    print(json.dumps(render_template(template)))
except PromptError as error:
    print(json.dumps({"error": str(error)}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_by_a_limit(source):
    done = subprocess.run(
        [sys.executable, "-c", RENDER],
        input=source,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,  # of hours
    )
    assert done.returncode == 0, done.stderr
    assert "asks for more than a prompt needs" in json.loads(done.stdout)["error"]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ '%(name)5s|%-4d' | replace('%-4d', '') % {'name': 'ab'} }}", "   ab|"),
        ("{{ '2024-01-01 %s, 50%%' | format('x') }}", "2024-01-01 x, 50%"),
        ("{{ '{{\"a\": {:>5}}} {x!r}'.format(1, x='b') }}", "{\"a\":     1} 'b'"),
        ("{{ '{0[k]} {0[k]:.3}'.format({'k': 'value'}) }}", "value val"),
        ("{{ '{a}'.format_map({'a': 1}) }}", "1"),
        ("{{ ' xyx '.strip().strip('x') }}{{ '--a-'|trim('-') }}", "ya"),
        ("{{ 'a</think>b</think>c'.rsplit('</think>', 1)|join('|') }}", "a</think>b|c"),
        ("{{ 'abab'.rfind('ab') }}{{ 'a.b.c'.rpartition('.')[0] }}", "2a.b"),
        ("{{ [1, 2, 3]|batch(2)|list }}{{ [1, 2]|map('string')|join }}", "[[1, 2], [3]]12"),
        ("{% for b in [1, 2, 3]|slice(2) %}{{ loop.length }}{{ b }}{% endfor %}", "2[1, 2]2[3]"),
        ("{{ [{'a': {'b': 1}}, {}]|map(attribute='a.b', default='')|list }}", "[1, '']"),
        ("{{ range(5, 0, -1)|select('odd')|list }}", "[5, 3, 1]"),
    ],
)
def test_what_templates_do_use_is_rendered(source, text):
    assert render_template(compile_template(source)) == text


def test_a_format_that_is_none_is_an_error_of_ours():
    with pytest.raises(PromptError, match="ValueError"):
        render_template(compile_template("{{ '{'.format(1) }}"))
