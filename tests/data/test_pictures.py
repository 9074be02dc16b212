"""Pictures hold the names that users give, whatever is in them."""

from pathlib import Path

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from textenv.data.pictures import legend_label, save_figure


@pytest.mark.parametrize("kind", ["png", "svg"])
@pytest.mark.parametrize("name", ["a$\\frac$", "$", "a_b^c", "_hidden", "基线", "<b>&", "%d{}"], ids=ascii)
def test_a_name_is_no_formula(name: str, kind: str, tmp_path: Path) -> None:
    figure = Figure(figsize=(3, 2), layout="constrained")
    panel = figure.subplots()
    panel.semilogx([1, 10, 1000], [0.0, 0.5, 1.0], label=legend_label(name))
    panel.set(title=name, xlabel=name)
    panel.annotate(name, (10, 0.5))
    legend = panel.legend()
    save_figure(figure, tmp_path / f"x.{kind}")
    assert [text.get_text().strip() for text in legend.get_texts()] == [name]
    assert any("10^" in label.get_text() for label in panel.get_xticklabels())  # powers of ten are still drawn as such
    if kind == "png":
        assert matplotlib.image.imread(tmp_path / "x.png").shape[2] == 4
