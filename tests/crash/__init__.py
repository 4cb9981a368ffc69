"""The crash rig: what a power cut, a killed process or a failing disk may leave behind.

`recorder` notes what the library does to a directory, `simdisk` says what of it is durable,
`images` builds the disks that a power cut could leave, `stage` puts them into a real directory,
and `check` opens each of them and asks whether what it finds is allowed. `faults` makes calls
fail, `mutation` removes barriers, `kills` kills real processes. `scenarios` holds the programs
that are put through all this.
"""
