"""A report reads as one line and as several."""

from dear_core.models.load_report import LoadReport, Reshaped

TIME = Reshaped("temporal_pos_embedding", (1, 16, 576), (1, 8, 576), "linear over time")


def test_a_report_is_one_line_of_counts_and_shapes():
    report = LoadReport(
        loaded=tuple(f"w{index}" for index in range(152)),
        reshaped=(TIME,),
        ignored={"frozen tower": tuple(f"t{index}" for index in range(151)), "text tower": ("logit_scale",)},
    )
    assert report.summary() == (
        "loaded 152 of 152 tensors, reshaped 1 (temporal_pos_embedding [1,16,576] → [1,8,576], linear over "
        "time), ignored 151 (frozen tower), 1 (text tower)"
    )


def test_the_long_form_names_keys_by_the_line():
    report = LoadReport(
        loaded=("a", "b"),
        missing=("c",),
        unexpected=("x", "y"),
        reshaped=(TIME,),
        ignored={"frozen tower": ("t1", "t2", "t3", "t4", "t5")},
        notes=("its classifier was left out",),
    )
    assert str(report).splitlines() == [
        "loaded 2 of 3 tensors",
        "  reshaped temporal_pos_embedding [1,16,576] → [1,8,576], linear over time",
        "  missing 1 (c)",
        "  unexpected 2 (x, y)",
        "  ignored 5 (t1, t2, t3 and 2 more): frozen tower",
        "  its classifier was left out",
    ]
    assert "\n" not in report.summary()


def test_a_plain_load_says_little():
    assert LoadReport(loaded=("a",)).summary() == str(LoadReport(loaded=("a",))) == "loaded 1 of 1 tensors"
