"""What ``import protoseg`` gives: models that segment images, their results, and the commands as functions."""
