"""Tests: the packages mirrored room by room, what they share in `support`, and e2e, which runs the command lines."""
