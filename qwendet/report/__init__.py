"""``qwendet eval --report``: one HTML page that needs nothing else, to look at and to hand to a colleague.

Evaluation ─► errors.py: what kind each error is ─► pictures as JPEG ─┐
           ─► charts.py: curves, calibration, confusion as SVG ───────┴► page.html.j2 ─► DIR/index.html
"""

from qwendet.report.page import write_benchmark_page, write_report

__all__ = ["write_benchmark_page", "write_report"]
