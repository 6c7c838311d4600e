"""Scripts behind every figure; nothing imports them but tests."""
