"""Files that were changed by chance or by an attacker, and what reads them: one module for each kind of file.

Every module has the same three functions, so that a campaign needs to know no kind:

    samples(folder) -> list[Path]   write small valid samples below a folder; each is one file or one folder
    mutate(path, rng) -> None       change a copy of a sample in place; it may write beside it, in its parent folder
    read(path) -> None              read it as the product does; raise ActVARError for a refusal

A kind whose files carry hashes has a second module, `…_signed`, whose `mutate` puts the hashes right as an attacker
would. Whatever `read` does but end or raise an ActVARError is a fault: another exception, a signal, memory or time
without bound, a program that is started, a file outside the sample that is opened (where links are not followed:
FOLLOWS_LINKS), a terminal that is told what to do. Where the operators of a graph run (RUNS_GRAPHS), want of memory is
counted by itself. Where a change must not go unseen, `read` itself raises AssertionError for it.
"""
