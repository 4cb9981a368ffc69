"""The same power cuts and kills for other libraries: NumPy's memmap, HDF5, Zarr, TensorStore.

A program that goes around `pmarray._system.osops`, a C library for one, is watched from below: it
works in a file system of the rig's own (`filesystem`, over FUSE), which notes what the kernel
sends it as the events of `tests.crash.events`. From there on everything is as for pmarray itself.
"""
