"""A directory of transformers' `save_pretrained`: `predict` on a picture equals transformers' pipeline."""

import numpy as np
import torch
import transformers
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

import jaxseg
from jaxseg.data.synthetic import draw_scene


def test_predict_equals_the_pipeline(tmp_path):
  torch.manual_seed(0)
  config = transformers.SegformerConfig(
    num_labels=5, id2label={i: f"thing {i}" for i in range(5)}, label2id={f"thing {i}": i for i in range(5)}
  )
  model = transformers.SegformerForSemanticSegmentation(config).eval()
  with torch.no_grad():  # random weights give nearly constant logits; spread them
    model.decode_head.classifier.weight.mul_(20)
  processor = SegformerImageProcessorPil(size={"height": 128, "width": 96})
  model.save_pretrained(tmp_path)
  processor.save_pretrained(tmp_path)

  photo, _ = draw_scene(3, 0, 7, size=(150, 201), num_classes=8)
  inputs = processor(images=photo, return_tensors="pt")
  with torch.no_grad():
    outputs = model(**inputs)
  theirs = processor.post_process_semantic_segmentation(outputs, target_sizes=[photo.shape[:2]])[0].numpy()

  net = jaxseg.from_pretrained(tmp_path)
  assert net.classes == tuple(f"thing {i}" for i in range(5))
  assert net.preprocess.size == (128, 96) and "preprocess" not in net.assumed
  ours = net.predict(photo)
  assert len(np.unique(theirs)) >= 3  # a constant map would prove nothing
  assert np.mean(ours == theirs) >= 0.999
