"""Evaluation: inference, exact scores over a split, the report, pictures."""

# Imported here and not on first use: `evaluate` and `panel` are functions of modules of the same
# name, and a module that is imported later would take the function's place.
from jaxseg.evaluation.classify import ClassificationReport, evaluate_classifier
from jaxseg.evaluation.evaluate import evaluate, make_eval_step
from jaxseg.evaluation.inference import label_map
from jaxseg.evaluation.panel import panel, save_panel
from jaxseg.evaluation.predictor import Predictor, make_predict
from jaxseg.evaluation.report import Report
from jaxseg.evaluation.rule import InferenceRule
from jaxseg.evaluation.views import Grouping

__all__ = [
  "ClassificationReport",
  "Grouping",
  "InferenceRule",
  "Predictor",
  "Report",
  "evaluate",
  "evaluate_classifier",
  "label_map",
  "make_eval_step",
  "make_predict",
  "panel",
  "save_panel",
]
