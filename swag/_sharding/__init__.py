"""A posterior whose weights are spread over the processes of a training.

Each process collects what it holds into a store of its own, a *part*; together they are one
posterior. Which items of a parameter it holds is a box (`swag._boxes`, `swag._held`). From the
ground up:

============= =====================================================================
``layout``    where the items of all parts lie in the vector           (arithmetic)
``manifest``  what says which parts belong together
``joined``    reading the parts as if they were one store
``agreement`` what the processes say to one another
``parts``     making and opening the part of this process
============= =====================================================================

The protocol, step by step:

1. A step of training writes one column into each part, without a word to anyone. Whether it is an
   iterate (finite, and not the last one again) the processes ask one another on the thread that
   collects, over a group of their own, before they commit it: all of them count it, or none does.
   So no process is more than one iterate ahead of another; what is durable may differ by what was
   on its way to the disk.
2. The posterior has the iterates that *every* part has. Reading it leaves aside what single parts
   have beyond them.
3. A new posterior is announced last: each process makes its part, with the number of the run in it,
   and makes it durable; only when all have done so does the first write the manifest, with the same
   number. A part with another number belongs to another run, and nobody takes it for this one's.
4. Whoever goes on with a posterior first cuts off what a part has more than the others, makes that
   durable, and waits until all have: otherwise a second crash could leave a new iterate in one part
   and a forgotten one, with the same number, in another.
5. With ``max_rank`` the columns of a part are a ring, and what is older is in its moments alone. A
   part that has stored moments cannot go back behind them. So before a checkpoint all parts make
   durable what they have, and the checkpoint of iterate m stores the moments of the m - 1 before:
   whatever a crash leaves, every part has these. Between two checkpoints a part is at most as many
   iterates ahead as lie between them, of which the ring has twice as many to spare.
6. With ``max_rank=0`` a part is its moments, at checkpoints. It keeps those of two, and before a
   checkpoint all parts make the last one durable: so the one before the last of a part that is
   ahead is the last of any that is behind, and is what the posterior then has.
"""
