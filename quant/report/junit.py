"""Write a verdict as JUnit XML for CI servers: a suite for each level, a case for each limit.

Written to the schema of Jenkins' xunit plugin (junit-10.xsd), which GitLab's and others' readers
accept as well.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from ..compare.findings import CheckResult
from ..gate.range_limit import LEVEL, list_overflows
from ..gate.verdict import Row, Verdict
from .blame_lines import list_blame

MAX_GUILTY = 10
# Characters that XML 1.0 has no way to write, escaped or not; lone surrogates are among them
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(result: CheckResult, verdict: Verdict | None = None) -> str:
    """The text of junit.xml; without a verdict it holds no test."""
    rows = verdict.rows if verdict else ()
    root = ET.Element("testsuites", {"name": "vlmedge check"} | _count(rows))
    for level in dict.fromkeys(row.level for row in rows):
        mine = [row for row in rows if row.level == level]
        suite = ET.SubElement(root, "testsuite", {"name": level} | _count(mine))
        properties = ET.SubElement(suite, "properties")
        for name in ("bundle", "reference", "data", "data_sha256", "num_examples"):
            value = _clean(str(getattr(result, name)))
            ET.SubElement(properties, "property", {"name": name, "value": value})
        for row in mine:
            names = {"name": _clean(row.key), "classname": f"vlmedge.check.{level}"}
            case = ET.SubElement(suite, "testcase", names)
            if not row.ok:
                kind = "undecided" if row.state == "undecided" else "limit"
                failure = {"type": kind, "message": _clean(row.message)}
                ET.SubElement(case, "failure", failure).text = _clean(
                    _explain(row, result, verdict)
                )
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode", xml_declaration=False)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _count(rows: tuple[Row, ...] | list[Row]) -> dict[str, str]:
    failures = sum(not row.ok for row in rows)
    return {"tests": str(len(rows)), "failures": str(failures), "errors": "0"}


def _explain(row: Row, result: CheckResult, verdict: Verdict | None) -> str:
    lines = [row.message, f"{row.metric}: {row.meaning}"]
    if row.level == LEVEL:
        return "\n".join([*lines, *list_overflows(result.ranges)])
    lines += list_blame(verdict, MAX_GUILTY) if verdict else ()
    return "\n".join(lines)


def _clean(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)
