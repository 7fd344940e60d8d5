"""How good a detector is: COCO metrics by pycocotools, and what they do not say.

samples, predictions ─► coco.py: ground truth, results, metrics ─► scores.py: one run, label by label
two runs ─► compare.py: differences with intervals        checkpoint, data ─► command.py: `qwendet eval`
"""

from qwendet.config.contradictions import METRICS
from qwendet.evaluation.coco import coco_ground_truth, coco_metrics, coco_results

__all__ = ["METRICS", "coco_ground_truth", "coco_metrics", "coco_results"]
