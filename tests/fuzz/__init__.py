"""Directories as a stranger might have made them: parsers are given what no writer wrote.

An input is made from something valid by a few changes, with its checksums made right again, since
whoever makes such a directory would do that. It is opened, read, written to and closed. What may
happen is an error of the library's own tree. A crash, a hang, another exception, an allocation of
more than the bytes that are there, and anything that changes outside the directory are faults.

::

    mutate     changes of JSON values, bytes and trees of files
    targets    one module for each family of parsers: makes inputs, and uses them
    watch      runs inputs in a process of its own, under limits
    __main__   seed after seed, for so many minutes
"""
