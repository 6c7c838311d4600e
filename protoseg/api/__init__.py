"""What ``import protoseg`` gives: models, their results, and the commands as functions."""
