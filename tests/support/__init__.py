"""What tests share: real servers, tiny trainers and artifacts, sources of images, the chart rendered."""

from pathlib import Path

PROJECT = Path(__file__).parents[2]
