"""Charts hold what they were given: bands, lines and marks are read from the figure, images from the PNG."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from tlkeras.plotting.charts import plot_contact_sheet, plot_history, plot_lr_finder


@pytest.fixture
def drawn(monkeypatch):
    """Collect the figures that are written, to be looked into."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig

    def keep(figure, *arguments, **options):
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def make_rows(stages: dict[str, int], **columns) -> list[dict]:
    names = [name for name, count in stages.items() for _ in range(count)]
    return [
        {"epoch": number + 1, "stage": name, "loss": 1 / (number + 1), **{key: f(number) for key, f in columns.items()}}
        for number, name in enumerate(names)
    ]


def find_lines(axis) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_ydata() for line in axis.lines if not line.get_label().startswith("_")}


def test_a_history_shows_its_stages_lines_and_best_epoch(drawn, tmp_path):
    rows = make_rows(
        {"head": 2, "top": 3},
        val_loss=lambda number: 0.5 + number,
        val_roc_auc=lambda number: 0.9,
        roc_auc=lambda number: 0.95,
        learning_rate=lambda number: 1e-3,
        best=lambda number: number in (1, 3),
        seconds=lambda number: 7.0,
    )
    plot_history(rows, tmp_path / "h.png")
    loss, metrics, rate = drawn[0].axes
    assert list(find_lines(loss)) == ["loss, training", "loss, validation", "best: epoch 4"]
    np.testing.assert_allclose(find_lines(loss)["loss, validation"], [0.5, 1.5, 2.5, 3.5, 4.5])
    assert list(find_lines(metrics)) == ["roc auc, training", "roc auc, validation"], "seconds are no metric"
    assert rate.get_ylabel() == "learning rate"
    assert [text.get_text() for text in loss.texts] == ["head", "top"]
    assert [text.xy[0] for text in loss.texts] == [1.5, 4.0], "each name in the middle of its band"
    assert loss.get_xlim() == (0.5, 5.5)


@pytest.mark.parametrize("count", [1, 3, 60])
def test_a_history_of_any_length_is_an_image(count, drawn, tmp_path):
    plot_history(make_rows({"all": count}), tmp_path / "h.png")
    (axis,) = drawn[0].axes
    assert all(tick == int(tick) for tick in axis.get_xticks())
    assert Image.open(tmp_path / "h.png").size[0] == 990


def test_values_that_are_not_numbers_leave_a_gap(drawn, tmp_path):
    """A CSV gives texts, empty ones where nothing was measured."""
    rows = make_rows({"all": 4}, val_loss=lambda number: ["0.5", "", None, math.inf][number])
    plot_history(rows, tmp_path / "h.png")
    np.testing.assert_array_equal(find_lines(drawn[0].axes[0])["loss, validation"], [0.5, math.nan, math.nan, math.nan])


def test_an_empty_column_has_no_line(drawn, tmp_path):
    plot_history(make_rows({"all": 2}, val_loss=lambda number: math.nan), tmp_path / "h.png")
    assert list(find_lines(drawn[0].axes[0])) == ["loss, training"]


def test_names_wider_than_their_bands_are_slanted(drawn, tmp_path):
    plot_history(make_rows({"a": 30, "b": 30}), tmp_path / "short.png")
    plot_history(make_rows({"the head alone": 1, "b": 59}), tmp_path / "long.png")
    assert [{text.get_rotation() for text in figure.axes[0].texts} for figure in drawn] == [{0}, {35}]


def test_a_history_needs_rows(tmp_path):
    with pytest.raises(ValueError, match="has no epochs"):
        plot_history([], tmp_path / "h.png")


def test_rates_show_the_fall_and_the_suggestion(drawn, tmp_path):
    rates, losses = [1e-4, 1e-3, 1e-2, 1e-1, 1.0], [1.0, 0.8, 0.2, 500.0, math.nan]
    plot_lr_finder(rates, losses, 10**-2.5, tmp_path / "r.png")
    plot_lr_finder(rates, losses, None, tmp_path / "r.png")
    marked, plain = (figure.axes[0] for figure in drawn)
    assert marked.get_xscale() == "log"
    assert marked.get_ylim() == pytest.approx((0.12, 1.48)), "0.8 from first to lowest; a half above, a tenth around"
    curve, line, dot = marked.lines
    np.testing.assert_array_equal(curve.get_ydata(), losses)
    assert line.get_xdata() == pytest.approx([10**-2.5] * 2)
    assert dot.get_ydata() == pytest.approx([0.5]), "half-way between 0.8 and 0.2 on a log scale"
    assert [text.get_text() for text in marked.texts] == ["suggested: 0.0032"]
    assert len(plain.lines) == 1 and not plain.texts


def test_smoothed_losses_are_drawn_over_the_others(drawn, tmp_path):
    rates, losses, smoothed = [1e-3, 1e-2, 1e-1], [1.0, 0.2, 0.9], [0.9, 0.5, 0.7]
    plot_lr_finder(rates, losses, 1e-2, tmp_path / "r.png", smoothed)
    behind, curve, _, dot = drawn[0].axes[0].lines
    assert list(behind.get_ydata()) == losses and list(curve.get_ydata()) == smoothed
    assert behind.get_alpha() < 1 and dot.get_ydata() == pytest.approx([0.5])


def test_rates_without_a_fall_are_shown_whole(drawn, tmp_path):
    plot_lr_finder([1e-3, 1e-2], [1.0, 2.0], None, tmp_path / "r.png")
    low, high = drawn[0].axes[0].get_ylim()
    assert low < 1.0 and high > 2.0


@pytest.mark.parametrize(("rates", "losses"), [([], []), ([1e-3], [1.0, 2.0])])
def test_rates_need_losses(rates, losses, tmp_path):
    with pytest.raises(ValueError, match="One loss per rate"):
        plot_lr_finder(rates, losses, None, tmp_path / "r.png")


def test_a_contact_sheet_shows_each_image_in_its_place(drawn, tmp_path):
    colours = [[(200, 30, 30), (30, 200, 30), (30, 30, 200)], [(200, 200, 30), (30, 200, 200)]]
    images = [[np.full((32, 48, 3), colour, np.uint8) for colour in row] for row in colours]
    plot_contact_sheet(images, ["$first", "second"], ["plain", "flip", "both"], tmp_path / "s.png")
    (axis,) = drawn[0].axes
    pixels = np.asarray(Image.open(tmp_path / "s.png").convert("RGB")).astype(int)
    for y, row in enumerate([*colours[:1], [*colours[1], (255, 255, 255)]]):
        for x, colour in enumerate(row):
            left, up = axis.transData.transform((x * 50 + 23.5, y * 34 + 15.5))
            assert abs(pixels[len(pixels) - round(up), round(left)] - colour).max() <= 2
    assert [label.get_text() for label in axis.get_yticklabels()] == ["$first", "second"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["plain", "flip", "both"]


def test_long_labels_are_cut_and_turned(drawn, tmp_path):
    image = np.zeros((32, 32, 3), np.uint8)
    plot_contact_sheet([[image]], ["a name of thirty letters, nearly"], ["rand augment, strong"], tmp_path / "s.png")
    (axis,) = drawn[0].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a name of thirty letter…"]
    assert [label.get_rotation() for label in axis.get_xticklabels()] == [90]


def test_a_large_sheet_stays_handy(tmp_path):
    image = np.zeros((64, 64, 3), np.uint8)
    plot_contact_sheet([[image] * 100], ["a"], [""] * 100, tmp_path / "s.png")
    assert max(Image.open(tmp_path / "s.png").size) < 4200


@pytest.mark.parametrize(("rows", "columns"), [(["a", "b"], ["v"]), (["a"], ["v", "w"])])
def test_a_contact_sheet_needs_a_label_each(rows, columns, tmp_path):
    with pytest.raises(ValueError, match="a label per row and a label per column"):
        plot_contact_sheet([[np.zeros((8, 8, 3), np.uint8)]], rows, columns, tmp_path / "s.png")
    with pytest.raises(ValueError, match="needs images"):
        plot_contact_sheet([], [], [], tmp_path / "s.png")


def test_the_users_own_style_is_neither_used_nor_changed(drawn, tmp_path):
    import matplotlib

    with matplotlib.rc_context({"figure.facecolor": "black", "lines.color": "red"}):
        before = dict(matplotlib.rcParams)
        plot_history(make_rows({"all": 2}), tmp_path / "h.png")
        assert dict(matplotlib.rcParams) == before
    assert Image.open(tmp_path / "h.png").convert("RGB").getpixel((0, 0)) == (255, 255, 255)
