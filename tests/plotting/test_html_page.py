"""Pages of tables and images: text is escaped, other files are never replaced."""

import numpy as np
import pytest

from tlkeras.errors import ResourceError
from tlkeras.plotting.html_page import HtmlFigure, HtmlSection, check_page, write_page


def test_pages_escape_text(tmp_path):
    image = np.zeros((4, 6, 3), np.uint8)
    strips = [("<b>alike</b>", [HtmlFigure(image, ["<i>cat</i>", "x" * 300])])]
    section = HtmlSection("A & B", ["!grave", "light"], ("name", "number", "share"), [("<td>", 1234, 0.5)], strips)
    page = write_page(tmp_path / "a.html", "<title>", [section]).read_text()
    for text in (
        "A &amp; B",
        "&lt;b&gt;alike",
        "&lt;i&gt;cat",
        "&lt;td&gt;",
        "1,234",
        "width:6.00rem",
        "class='bad'>grave",
    ):
        assert text in page
    write_page(tmp_path / "a.html", "again", [])
    with pytest.raises(ResourceError, match="does not exist. Create it"):
        check_page(tmp_path / "none/a.html")
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_another_file_is_not_replaced(tmp_path):
    (tmp_path / "mine.html").write_text("precious")
    with pytest.raises(ResourceError, match="is not a page of tlkeras"):
        write_page(tmp_path / "mine.html", "title", [])
    assert (tmp_path / "mine.html").read_text() == "precious"
