"""The report as one HTML file, which asks nothing of a server or of the internet."""

from jaxseg.evaluation.page.charts import Series, chart
from jaxseg.evaluation.page.choice import Chosen, choose_images
from jaxseg.evaluation.page.pictures import Example, iou_picture, make_example, matrix_picture
from jaxseg.evaluation.page.render import render_page, report_values

__all__ = [
  "Chosen",
  "Example",
  "Series",
  "chart",
  "choose_images",
  "iou_picture",
  "make_example",
  "matrix_picture",
  "render_page",
  "report_values",
]
