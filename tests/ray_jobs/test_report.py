import io

from rich.console import Console

from ray_jobs import report


def result(top1, checkpoint="/x/last.pt"):
    return {
        "top1": top1,
        "top5": 1.0,
        "trainable_parameters": 1234567,
        "gflops": 0.2,
        "seconds": 12.34,
        "checkpoint": checkpoint,
        "per_class": {"Pushing something": top1, "Lifting something": None},
    }


RESULTS = {"RGB": result(0.5), "RGB+Depth(VideoMamba)": None, "RGB+Depth": result(0.75)}


def printed(width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    report.closing(console, "branches", RESULTS, "sqlite:////x/mlflow.db")
    return console.export_text()


def test_the_best_arm_and_the_lines_that_lead_on():
    text = printed()
    assert report.best_arm(RESULTS) == "RGB+Depth"
    assert "…" not in text and "parameters" in text  # it fits 80 columns
    assert "75.0" in text and "1,234,567" in text and "failed" in text
    assert "-m dear_core.eval --checkpoint /x/last.pt\n" in text
    assert "-m mlflow ui --backend-store-uri sqlite:////x/mlflow.db --host 127.0.0.1 --port 5000\n" in text


def test_names_are_whole_in_a_narrow_terminal():
    assert "RGB+Depth(VideoMamba)" in printed(width=40)


def test_no_result_at_all():
    assert report.best_arm({"RGB": None}) is None
    assert not report.figure({"RGB": None}).axes


def test_markdown_has_every_row():
    lines = report.markdown(RESULTS).splitlines()
    assert len(lines) == 5 and lines[2].startswith("| RGB | 50.0 | 100.0 | 1,234,567 | 0.200 | 12.3 |")
