"""The world around the models: config, data, storage, tracking, Ray and the stages."""
