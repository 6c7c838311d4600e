"""How an embedded scene is drawn: patterns, solids, and the scene that has them.

Only operations that IEEE 754 rounds exactly are used (+, -, *, /, square root, floor, comparisons), on
float32 arrays and Python numbers, and random bits come from PCG64 itself: NumPy promises its stream, but
not that of the distributions. So a scene has the same bytes on every machine and with every version.
"""
