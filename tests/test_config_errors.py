from __future__ import annotations

import pytest

from diffusion_lab.config_errors import one_line

UNION = """Parser key "trainer.callbacks":
  Does not validate against any of the Union subtypes
  Subtypes: [list[x.Callback], <class 'x.Callback'>, <class 'NoneType'>]
  Errors:
    - Parser key "samples":
        Expected a <class 'int'>. Got value: x
    - Not a valid subclass of Callback
      Subclass types expect one of:
      - a class path (str)
    - Expected a <class 'NoneType'>
  Given value type: <class 'list'>
  Given value: [{'class_path': 'diffusion_lab.FIDCallback'}]"""


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (UNION, "trainer.callbacks.samples: Expected an int. Got value: x"),
        (
            "Parser key \"a\":\n  Option 'sampls' is not accepted",
            "a: Option 'sampls' is not accepted; did you mean 'samples'?",
        ),
        ("unrecognized arguments: --modle.x 3", "unrecognized arguments: --modle.x 3; did you mean 'model.x'?"),
        ("something else\nover two lines", "something else"),
    ],
)
def test_one_line(message: str, line: str) -> None:
    assert one_line(message, ["model.x", "trainer.callbacks"]) == line
