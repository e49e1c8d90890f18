"""Kubernetes and the Ray Jobs API: the top floor, light, without torch, ray or mlflow."""
