"""How the synthetic birds are made: vocabulary, sampling, anatomy, scenery, drawing, labels, layout; one idea a file.

A bird is a specification (`drawing.BirdSpec`: traits in CUB's own words plus the scene); `drawing.draw` turns it into
image, masks, part locations and attribute labels, as a pure function. `data_prep.synthetic_birds` is the public entry.
"""
