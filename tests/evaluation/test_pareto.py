"""The Pareto front by hand, and a picture with a level far below."""

from stages.evaluation.pareto import Point, draw, front


def test_front():
    #      dominated by 2  equal to 2  best quality  cheapest
    costs = [3.0, 5.0, 2.0, 2.0, 9.0, 1.0]
    scores = [7.0, 7.0, 8.0, 8.0, 9.0, 1.0]
    assert front(costs, scores) == [5, 2, 4]
    assert front([1.0, 1.0], [2.0, 3.0]) == [1]
    assert front([1.0], [0.0]) == [0]


def test_the_picture_is_the_same_bytes_again(tmp_path):
    points = [
        Point("dense", (49.4, 46.0, 53.4), (50.0, 58.0, 70.0), 5.95),
        Point("random-0.9", (0.5, 0.2, 0.9), (50.0, 57.0, 70.0), 3.04),
        Point("onnx-int8", (48.7, 45.6, 52.3), (10.0, 13.0, 16.0), 2.36),
    ]
    pictures = []
    for name in ("a.png", "b.png"):
        draw(tmp_path / name, points, "bleu", 0.95, "random-0.9")
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0].startswith(b"\x89PNG") and pictures[0] == pictures[1]
