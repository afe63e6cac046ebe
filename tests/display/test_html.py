"""The base of every page: texts of strangers stay text; the policy allows just the page's own style and script."""

import base64
import hashlib
import re

import jinja2
import pytest

from sdpersonal.display.html import data_url, render_template

STYLE = "{% block style %}{{ super() }}{{ source('own.css') }}{% endblock %}"
SCRIPT = "{% block script %}{{ source('own.js') }}{% endblock %}"
BODY = "{% block body %}<p>{{ text }}</p>{% endblock %}"


def render(folder, *blocks, base="base.html", **values) -> str:
    (folder / "own.css").write_text("p > b { color: red }\n")
    (folder / "own.js").write_text('if (1 < 2 && "{{ 7 * 7 }}") document.title += "é";\n')
    (folder / "own.html").write_text(f"{{% extends '{base}' %}}\n" + "\n".join(blocks))
    return render_template(folder / "own.html", **values)


def csp_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def inside(tag: str, page: str) -> list[str]:
    return re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)


def test_text_values_are_escaped_and_source_files_are_not(tmp_path):
    page = render(tmp_path, STYLE, SCRIPT, BODY, title="</title><script>", text='<img src=x onerror="1">{{ 7 * 7 }}')
    assert "<p>&lt;img src=x onerror=&#34;1&#34;&gt;{{ 7 * 7 }}</p>" in page
    assert inside("title", page) == ["&lt;/title&gt;&lt;script&gt;"]
    assert inside("script", page) == [(tmp_path / "own.js").read_text()]
    assert inside("style", page)[0].endswith("p > b { color: red }\n")


def test_the_content_security_policy_allows_only_the_own_style_and_script(tmp_path):
    page = render(tmp_path, STYLE, SCRIPT, BODY, title="", text="")
    (policy,) = re.findall(r'Security-Policy" content="([^"]*)"', page)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": csp_source(inside("style", page)[0]),
        "script-src": csp_source(inside("script", page)[0]),
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_a_page_without_a_script_allows_no_scripts(tmp_path):
    page = render(tmp_path, BODY, title="", text="")
    assert "script" not in page and "default-src 'none'" in page


def test_a_missing_template_value_raises_an_error(tmp_path):
    with pytest.raises(jinja2.UndefinedError, match="text"):
        render(tmp_path, BODY, title="")


def test_data_url_encodes_bytes_as_base64():
    url = data_url(b"\x00\xffpng", "image/png")
    assert url.startswith("data:image/png;base64,") and base64.b64decode(url.partition(",")[2]) == b"\x00\xffpng"
