"""Models by name, and their weights: saving, loading, the Hugging Face hub and importers of public checkpoints.

A saved model is a folder: ``config.json`` (plain data: what to build, its task and its preprocessing) beside
``model.safetensors``. Nothing in it is ever run, and pickled weights are refused; only ``zoo convert`` reads those.
"""

from zoo.hub.folder import save
from zoo.hub.model import Model, create_model
from zoo.hub.predictor import Predictor, load

__all__ = ["Model", "Predictor", "create_model", "load", "save"]
