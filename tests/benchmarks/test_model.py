"""The CPU benchmark runs to its end at a tiny size, checks equality on the way, and keeps its rows."""

import json

import pytest


@pytest.mark.slow
def test_every_row_is_measured(run_command, tmp_path):
    done = run_command(
        "benchmarks/model.py",
        "--size",
        "tiny",
        "--repeats",
        "1",
        "--json",
        tmp_path / "rows.json",
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 10 and all(row["seconds"] > 0 for row in rows)
    with_plain = [row["name"] for row in rows if row["plain"]]
    assert "Side4Video, forward + backward, fp32" in with_plain and "scan, forward" in with_plain
    assert sum(line.startswith("| ") for line in done.stdout.splitlines()) == len(rows) + 2


@pytest.mark.slow
def test_a_wrong_size_is_one_sentence(run_command):
    done = run_command("benchmarks/model.py", "--size", "huge")
    assert done.returncode == 2 and "invalid choice: 'huge'" in done.stderr
    assert "Traceback" not in done.stderr
