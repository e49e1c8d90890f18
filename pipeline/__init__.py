"""The training pipeline around `models`: config, data, storage, tracking, Ray and the stages."""
