"""The power-cut rig: a real kernel writes to real file systems, and loses its power.

`image` makes a machine's kernel and root file system, `packages` adds Python and this source tree,
`qemu` says which machine they are parts of, and `rig` keeps all of it, with a snapshot of the
machine as it has just started. `guest` is one such machine while it runs: it takes orders, answers,
and has a plug to pull. Inside of it, `agent` carries the orders out, with `writer` and `checker`.
`media` says where a group can be; `campaign` cuts the power at random instants and judges what is
there afterwards; `writelog` and `replay` do it write by write, from a log that the kernel kept.
"""
