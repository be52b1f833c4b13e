"""Scripts that run an exported file with nothing but its runtime: MODEL IMAGES.npz RESULTS.npz.

IMAGES.npz holds uint8 b h w 3 arrays, RESULTS.npz gets what the file gives for each, under the same
name, and "seconds", the shortest of three runs of each.
"""
