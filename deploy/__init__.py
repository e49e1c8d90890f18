"""Kubernetes and the Ray Jobs API: the top layer. Its modules import without torch, ray or mlflow."""
