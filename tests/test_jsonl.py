from dear_core import jsonl


def test_lines_are_read_back_in_order_and_no_file_is_no_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert jsonl.read(path) == []
    jsonl.append(path, [{"a": 1}, {"a": "ü"}])
    jsonl.append(path, [{"a": 3}])
    assert jsonl.read(path) == [{"a": 1}, {"a": "ü"}, {"a": 3}]
    assert len(path.read_text().splitlines()) == 3


def test_a_line_that_was_cut_off_costs_itself_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    jsonl.append(path, [{"a": 1}, {"a": 2}])
    path.write_text(path.read_text()[:-4])
    jsonl.append(path, [{"a": 3}])
    jsonl.append(path, [{"a": 4}])
    assert jsonl.read(path) == [{"a": 1}, {"a": 3}, {"a": 4}]
