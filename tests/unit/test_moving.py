"""The predictor that docs/moving.md makes of a Celery task is one, and so is the first of docs/add-a-model.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("page", "inputs"), [("moving.md", ["prompt", "steps"]), ("add-a-model.md", ["text"])])
def test_a_page_s_predictor_is_loaded(tmp_path: Path, page: str, inputs: list[str]) -> None:
    text = (ROOT / "docs" / page).read_text()
    predictor = next(code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "BasePredictor" in code)
    (tmp_path / "predict.py").write_text(predictor)
    (tmp_path / "cog.yaml").write_text('predict: "predict.py:Predictor"\n')
    done = subprocess.run(
        [sys.executable, "-m", "cog_celery", "schema", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["components"]["schemas"]["Input"]["properties"]) == inputs
