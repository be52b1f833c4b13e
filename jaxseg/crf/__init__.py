"""The fully-connected CRF: mean-field inference, exact or on the permutohedral lattice, differentiable."""

from jaxseg.crf.energy import energy, energy_by_step
from jaxseg.crf.layer import CRF
from jaxseg.crf.mean_field import lattice_sizes, mean_field
from jaxseg.crf.refine import Refiner, Settings, papers_kernels
from jaxseg.crf.search import GRIDS, Grid, Search, grid_search, refined_grid

__all__ = [
  "CRF",
  "GRIDS",
  "Grid",
  "Refiner",
  "Search",
  "Settings",
  "energy",
  "energy_by_step",
  "grid_search",
  "lattice_sizes",
  "mean_field",
  "papers_kernels",
  "refined_grid",
]
