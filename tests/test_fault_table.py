"""The table of faults in tests/README.md names tests that exist."""

import ast
import re
from pathlib import Path

FOLDER = Path(__file__).parent
ROW = re.compile(r"^\|(?! *fault *\||-)(.+)\|(.+)\|(.+)\|$", re.MULTILINE)
TEST = re.compile(r"`(\w+\.py)::(\w+)`")


def test_every_fault_names_the_tests_that_show_it_and_each_of_them_exists():
    rows = ROW.findall((FOLDER / "README.md").read_text(encoding="utf-8"))
    assert len(rows) > 20
    for fault, _, tests in rows:
        named = TEST.findall(tests)
        assert named, fault
        for file, test in named:
            tree = ast.parse((FOLDER / file).read_text(encoding="utf-8"))
            assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (
                f"{file}::{test}"
            )
